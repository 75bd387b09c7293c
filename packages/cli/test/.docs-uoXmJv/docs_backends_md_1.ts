import { KVM_X86_OPS } from '@tskvm/core';

const required = Object.entries(KVM_X86_OPS).filter(([, op]) => op.kind === 'required');
console.log(required.length > 60);
// prints: true
console.log(KVM_X86_OPS.setCr0.does);
// prints: Install CR0 with no checks.
