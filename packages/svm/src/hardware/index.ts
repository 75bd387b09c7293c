/** AMD-V as a processor has it: what the driver may touch of it. */
export * from './entry-checks.ts';
export * from './exit-codes.ts';
export * from './features.ts';
export * from './instructions.ts';
export * from './intercepts.ts';
export * from './rules.ts';
export * from './vmcb.ts';
