/** VT-x, without a driver. */
export * from './bits.ts';
export * from './capabilities.ts';
export * from './controls.ts';
export { CheckContext, type CheckRow, type FailedCheck, failures, firstQualification, RowSet } from './entry-checks.ts';
export { CONTROL_ROWS } from './entry-controls.ts';
export { GUEST_ROWS } from './entry-guest.ts';
export { HOST_ROWS } from './entry-host.ts';
export * from './instructions.ts';
export * from './nested-paging.ts';
export * from './vmcs.ts';
