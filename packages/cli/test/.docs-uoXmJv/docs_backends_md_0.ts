// src/index.ts
import { type Backend, defineBackend } from '@tskvm/core';
import { svm } from '@tskvm/svm';

export const counts = { setCr0: 0 };

export default function countingBackend(params: Record<string, unknown> = {}): Backend {
  return defineBackend({
    name: 'counting',
    apiVersion: 1,
    extends: svm(params),
    ops: (base) => ({
      setCr0: function countingSetCr0(vcpu, cr0) {
        counts.setCr0++;
        base.setCr0(vcpu, cr0);
      },
    }),
  });
}
