/** VT-x, without a driver. */
export * from './bits.ts';
export * from './capabilities.ts';
export * from './controls.ts';
export * from './entry-checks.ts';
export * from './instructions.ts';
export * from './nested-paging.ts';
export * from './vmcs.ts';
