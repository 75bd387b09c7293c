/** What a user did wrong, with what to do: the command line prints the message and leaves with `status`. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
  /**
   * @param code stable, e.g. `IMAGE_NOT_BOOTABLE`
   * @param message what is wrong and what to do, one line
   * @param status exit status of the command line
   */
  constructor(
    readonly code: string,
    message: string,
    readonly status = 2,
  ) {
    super(message);
  }
}
