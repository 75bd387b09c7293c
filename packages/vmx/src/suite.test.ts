/** The suite that every backend passes, under both configurations; what VT-x does otherwise is data. */
import { backendSuite, type Difference } from '@tskvm/core/testing';
import { vmx } from './index.ts';

const DIFFERENCES: readonly Difference[] = [];

backendSuite(() => vmx(), DIFFERENCES);
backendSuite(() => vmx({ unrestrictedGuest: false }), DIFFERENCES);
backendSuite(() => vmx({ ept: false }), DIFFERENCES);
