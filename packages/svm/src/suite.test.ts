/** The suite that every backend passes, with nested paging, with shadow paging, and without the decode assists. */
import { backendSuite, type Difference } from '@tskvm/core/testing';
import { svm } from './index.ts';

const DIFFERENCES: readonly Difference[] = [];

backendSuite(() => svm(), DIFFERENCES);
backendSuite(() => svm({ npt: false }), DIFFERENCES);
backendSuite(() => svm({ decodeAssists: false, nrips: false }), DIFFERENCES);
