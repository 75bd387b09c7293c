/** A shutdown (triple fault) in words: the exception that the guest could not take, and the rule behind it. */
import { type ShutdownPlace, shutdownPlace, type Vcpu } from '@tskvm/core';

const VECTORS = 'DE DB NMI BP OF BR UD NM DF 9 TS NP SS GP PF 15 MF AC MC XM VE CP 22 23 24 25 26 27 HV VC SX'.split(
  ' ',
);

/** `#GP(0)`; without a code that the processor told, words for what it must have been. */
function exceptionText(exception: ShutdownPlace['exception']): string {
  if (exception === undefined) return "the guest met an exception that its interrupt table can't deliver";
  const { vector, errorCode } = exception;
  const code = errorCode === undefined ? '' : `(${errorCode === 0 ? '0' : `0x${errorCode.toString(16)}`})`;
  return `the guest's interrupt table can't deliver #${VECTORS[vector] ?? vector}${code}`;
}

/** `the guest's interrupt table can't deliver #GP(0); CR0 = 0x80000011 was refused: PG with EFER.LME needs CR4.PAE (…)`. */
export function shutdownCause(vcpu: Vcpu, at?: ShutdownPlace): string {
  try {
    const { exception, failures } = at ?? shutdownPlace(vcpu);
    const [first] = failures;
    const rules = failures.map((f) => `${f.rule} (${f.section})`).join('; ');
    const refused = first ? `; ${first.field} = 0x${first.value.toString(16)} was refused: ${rules}` : '';
    return exceptionText(exception) + refused;
  } catch {
    // An encrypted guest's registers are out of reach.
    return exceptionText(undefined);
  }
}
