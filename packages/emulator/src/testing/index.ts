/**
 * What tests of the emulator and of everything above it share.
 */
export * from './machine.ts';
export * from './model.ts';
export * from './page-walk.ts';
