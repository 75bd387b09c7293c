/** Refusals as data: a stable code, the field, its value, the rule and the manual's section. English is added where it is printed. */
export interface FailedCheck {
  /** Stable, e.g. `vmx.guest.cr0.pg-without-pe`. */
  code: string;
  field: string;
  value: bigint;
  /** The rule as the manual states it, short. */
  rule: string;
  /** e.g. `SDM vol. 3 26.3.1.1`. */
  section: string;
}

/** What the caller did wrong. */
export class KvmError extends Error {
  override readonly name = 'KvmError';
  /**
   * @param code stable, e.g. `SREGS_LMA_WITHOUT_PG`
   * @param errno KVM's errno (positive)
   * @param message what is wrong and what to do
   * @param rule the rule that was broken, if one is
   */
  constructor(
    readonly code: string,
    readonly errno: number,
    message: string,
    readonly rule?: string,
  ) {
    super(message);
  }
}
