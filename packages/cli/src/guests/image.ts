/** Sparse guest images as they are embedded in the package. */

export interface SparseImage {
  /** Bytes of the whole image. */
  size: number;
  /** What stands between the parts. */
  filler: number;
  /** [offset, base64]. */
  parts: readonly (readonly [number, string])[];
}

/** The whole image. */
export function expandImage(image: SparseImage): Uint8Array {
  const bytes = new Uint8Array(image.size).fill(image.filler);
  for (const [at, text] of image.parts) {
    const binary = atob(text);
    for (let i = 0; i < binary.length; i++) bytes[at + i] = binary.charCodeAt(i);
  }
  return bytes;
}
