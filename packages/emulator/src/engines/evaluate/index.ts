/**
 * The engine evaluate: one instruction at a time, computed directly.
 */
export { EvaluateBuilder } from './builder.ts';
export { EvaluateContext, emulateMode } from './context.ts';
export { Evaluator, type EvaluatorOptions, emulateInstruction } from './evaluator.ts';
export { EmulateSession, type LoggedRead, type SavedSession } from './session.ts';
