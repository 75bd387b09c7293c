import { Vector } from '@tskvm/emulator';
import { beforeEach, describe, expect, test } from 'vitest';
import {
  kvmDeliverExceptionPayload,
  kvmQueueException,
  kvmQueueExceptionE,
  kvmQueueExceptionEP,
  kvmQueueExceptionP,
  kvmRequeueException,
} from './exceptions.ts';
import { Kvm } from './kvm.ts';
import { idleBackend } from './testing/idle-backend.ts';
import { Req } from './types.ts';
import type { Vcpu } from './vcpu.ts';

let vcpu: Vcpu;
beforeEach(async () => {
  const kvm = await Kvm.create(idleBackend(), { memory: 1 << 20 });
  vcpu = kvm.createVm().createVcpu(0);
  vcpu.requests.clear();
});
const queue = (vector: number): void => {
  if (vector === Vector.DE || vector === Vector.UD || vector === Vector.DB) kvmQueueException(vcpu, vector);
  else kvmQueueExceptionE(vcpu, vector, 0);
};

describe('a second exception on top of a first (APM vol. 2 table 8-6)', () => {
  test.each([
    ['#GP on #GP', Vector.GP, Vector.GP, Vector.DF],
    ['#NP on #DE', Vector.DE, Vector.NP, Vector.DF],
    ['#PF on #PF', Vector.PF, Vector.PF, Vector.DF],
    ['#GP on #PF', Vector.PF, Vector.GP, Vector.DF],
    ['#PF on #GP: the new one', Vector.GP, Vector.PF, Vector.PF],
    ['#UD on #GP: the new one', Vector.GP, Vector.UD, Vector.UD],
    ['#GP on #UD: the new one', Vector.UD, Vector.GP, Vector.GP],
  ])('%s', (_name, first, second, result) => {
    queue(first);
    queue(second);
    expect(vcpu.arch.exception).toMatchObject({ pending: true, vector: result });
    expect(vcpu.arch.exception.hasErrorCode).toBe(result !== Vector.UD);
    expect(vcpu.requests.has(Req.EVENT)).toBe(true);
  });
  test('anything on #DF: triple fault', () => {
    kvmQueueExceptionE(vcpu, Vector.DF, 0);
    kvmQueueExceptionE(vcpu, Vector.GP, 0);
    expect(vcpu.arch.exception.pending).toBe(false);
    expect(vcpu.requests.has(Req.TRIPLE_FAULT)).toBe(true);
  });
  test('an exception that was being delivered combines too', () => {
    kvmRequeueException(vcpu, Vector.GP, true, 8);
    kvmQueueExceptionE(vcpu, Vector.SS, 0);
    expect(vcpu.arch.exception).toMatchObject({ vector: Vector.DF, pending: true, injected: false });
  });
});

describe('payloads', () => {
  test("#PF's address becomes CR2", () => {
    kvmQueueExceptionEP(vcpu, Vector.PF, 6, 0xfffff000n);
    expect(vcpu.arch.cr2[0]).toBe(0xfffff000n);
    expect(vcpu.arch.exception).toMatchObject({ errorCode: 6, hasPayload: false });
  });
  test("#DB's bits become DR6 and replace the earlier trap bits", () => {
    vcpu.arch.dr6 = 0xffff0ff3n;
    kvmQueueExceptionP(vcpu, Vector.DB, 0x4000n);
    expect(vcpu.arch.dr6).toBe(0xffff4ff0n);
  });
  test('nothing happens twice', () => {
    kvmQueueExceptionEP(vcpu, Vector.PF, 0, 0x1000n);
    vcpu.arch.cr2[0] = 0n;
    kvmDeliverExceptionPayload(vcpu, vcpu.arch.exception);
    expect(vcpu.arch.cr2[0]).toBe(0n);
  });
});
