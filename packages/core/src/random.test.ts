import { describe, expect, it } from 'vitest';
import { Kvm } from './kvm.ts';
import { idleBackend } from './testing/idle-backend.ts';

const options = { memory: 4 << 20 };

describe("RDRAND's sequence", () => {
  it('begins at the seed and is saved with the kernel', async () => {
    const first = await Kvm.create(idleBackend(), { ...options, seed: 7n });
    const { random } = first.save();
    expect(random).toBe(7n);
    const other = await Kvm.create(idleBackend(), options);
    expect(other.save().random).toBe(0n);
    other.load(first.save());
    expect(other.save().random).toBe(7n);
  });
  it('a seed beyond 64 bits is refused by name', async () => {
    await expect(Kvm.create(idleBackend(), { ...options, seed: 1n << 64n })).rejects.toThrow(/seed/);
  });
});
