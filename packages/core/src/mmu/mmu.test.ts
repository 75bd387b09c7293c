import { CR0, CR4, EFER, PAGE } from '@tskvm/emulator';
import { beforeEach, describe, expect, test } from 'vitest';
import { getSupportedCpuid } from '../cpuid.ts';
import { Kvm } from '../kvm.ts';
import { lowWord } from '../low-word.ts';
import { idleBackend } from '../testing/idle-backend.ts';
import type { Vcpu } from '../vcpu.ts';
import type { Vm } from '../vm.ts';
import { kvmCalcCpuRole, kvmConfigureMmu, kvmMmuGvaToGpa, kvmMmuSetEptMasks, noFault, Pferr, Role } from './mmu.ts';
import { ExtRole } from './role.ts';
import { isMmioSpte, mmioSpteGeneration, type TdpRoot, tdpLookup, tdpMap, tdpRoot } from './tdp.ts';

const MIB = 1 << 20;
let vm: Vm;
let vcpu: Vcpu;
let root: TdpRoot;

async function start(shuffleFrames?: number, ept = false): Promise<void> {
  const kvm = await Kvm.create(idleBackend({ getMtMask: () => 0x30 }), { memory: 24 * MIB, shuffleFrames });
  kvmConfigureMmu(kvm, true, 4, 4, 2);
  if (ept) kvmMmuSetEptMasks(kvm, true, true);
  vm = kvm.createVm();
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 8 * MIB });
  vcpu = vm.createVcpu(0);
  vcpu.setCpuid(getSupportedCpuid(kvm));
  root = tdpRoot(vm, 0, 4);
}
const leaf = (gfn: number) => tdpLookup(vm, root, gfn);

describe('nested tables', () => {
  test('contiguous frames are mapped by 2 MiB pages, scattered ones by 4 KiB pages', async () => {
    await start();
    expect(tdpMap(vcpu, root, 0x234, false)).toBe('fixed');
    expect(leaf(0x234)).toMatchObject({ level: 2 });
    expect(tdpMap(vcpu, root, 0x235, false)).toBe('spurious');
    await start(11);
    tdpMap(vcpu, root, 0x234, false);
    expect(leaf(0x234)).toMatchObject({ level: 1 });
    expect(leaf(0x235)).toBeUndefined();
  });
  test('an NPT leaf points to the host frame: P, RW, US, A, D and no NX', async () => {
    await start(11);
    tdpMap(vcpu, root, 7, true);
    expect(leaf(7)?.spte).toBe(BigInt(vm.gfnToHfn(7) * PAGE) | 0x67n);
  });
  test('an EPT leaf: R, W, X, memory type WB, A, D', async () => {
    await start(11, true);
    tdpMap(vcpu, root, 7, true);
    expect(leaf(7)?.spte).toBe(BigInt(vm.gfnToHfn(7) * PAGE) | 0x337n);
  });
  test.each([false, true])('MMIO is marked with the generation of the slots (EPT %s)', async (ept) => {
    await start(undefined, ept);
    expect(tdpMap(vcpu, root, 0xfec00, true)).toBe('emulate');
    const { spte } = leaf(0xfec00) ?? { spte: 0n };
    expect(isMmioSpte(vm.kvm, spte)).toBe(true);
    expect(mmioSpteGeneration(spte)).toBe(vm.generation);
    vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0x10000000, memorySize: PAGE });
    expect(mmioSpteGeneration(spte)).not.toBe(vm.generation);
  });
  test('a logged slot is mapped read-only until it is written', async () => {
    await start();
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 8 * MIB, flags: 1 });
    tdpMap(vcpu, root, 3, false);
    expect(leaf(3)).toMatchObject({ level: 1 });
    expect((leaf(3)?.spte ?? 0n) & 2n).toBe(0n);
    tdpMap(vcpu, root, 3, true);
    expect((leaf(3)?.spte ?? 0n) & 2n).toBe(2n);
    expect(vm.getDirtyLog(0)[0]).toBe(8);
    expect((leaf(3)?.spte ?? 0n) & 2n).toBe(0n);
  });
  test('deleting a slot drops every root and gives the tables back', async () => {
    await start();
    const before = vm.kvm.hostMemory.freePages;
    tdpMap(vcpu, root, 3, true);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0 });
    expect(vm.mmu.roots.size).toBe(0);
    expect(vm.kvm.hostMemory.freePages).toBe(before + 1 + (8 * MIB) / PAGE);
  });
});

describe('walks of the guest tables', () => {
  beforeEach(async () => {
    await start(5);
    const put = (at: number, value: bigint) => vm.writeGuestValue(at, value, 8);
    put(0x1000, 0x2000n | 7n);
    put(0x2000, 0x3000n | 7n);
    put(0x3000, 0x4000n | 7n);
    put(0x4008, 0x9000n | 1n);
    put(0x4010, (1n << 63n) | 0xa000n | 3n);
    Object.assign(vcpu.arch, {
      cr0: CR0.PG | CR0.PE | CR0.WP,
      cr3: 0x1000n,
      cr4: CR4.PAE,
      efer: EFER.LMA | EFER.LME | EFER.NXE,
    });
    for (const reg of ['cr0', 'cr3', 'cr4'] as const) vcpu.arch.regsAvail.add(reg);
  });
  const walk = (gva: bigint, access: number) => {
    const fault = noFault();
    const gpa = kvmMmuGvaToGpa(vcpu, gva, access, fault);
    return gpa < 0 ? { error: fault.errorCode, cr2: fault.address } : gpa;
  };
  test('4-level: reads go through, A is set', () => {
    expect(walk(0x1234n, 0)).toBe(0x9234);
    expect(vm.readGuestValue(0x4008, 8) & 0x60n).toBe(0x20n);
  });
  test.each([
    ['not present', 0x5000n, 0, 0],
    ['write to read-only with WP', 0x1000n, Pferr.write, 3],
    ['user access to a supervisor page', 0x1000n, Pferr.user, 5],
    ['fetch from NX', 0x2000n, Pferr.fetch, 0x11],
  ])('%s', (_name, gva, access, error) => {
    expect(walk(gva, access)).toEqual({ error, cr2: gva });
  });
  test('with WP=0 a supervisor writes to read-only pages', () => {
    vcpu.arch.cr0 &= ~CR0.WP;
    expect(walk(0x1000n, Pferr.write)).toBe(0x9000);
  });
  test("a debugger's translation marks nothing", () => {
    expect(vcpu.translate(0x2010n)).toBe(0xa010);
    expect(vcpu.translate(0x7000n)).toBeUndefined();
    expect(vm.readGuestValue(0x4010, 8) & 0x60n).toBe(0n);
  });
});

describe('CPU role (facts: kvm_mmu_page_role)', () => {
  beforeEach(() => start());
  const role = (cr0: bigint, cr4: bigint, efer: bigint) => {
    const value = kvmCalcCpuRole(vcpu, { cr0: lowWord(cr0), cr4: lowWord(cr4), efer: lowWord(efer) });
    return { base: value % 2 ** 32, ext: Math.floor(value / 2 ** 32) };
  };
  test('paging off: direct, nothing else', () => {
    expect(role(0n, CR4.SMEP | CR4.PAE, EFER.NXE)).toEqual({ base: Role.accessAll | Role.direct, ext: ExtRole.valid });
  });
  test.each([
    ['32-bit', 0n, 0n, 2],
    ['PAE', CR4.PAE, 0n, 3],
    ['4-level', CR4.PAE, EFER.LMA, 4],
    ['5-level', CR4.PAE | CR4.LA57, EFER.LMA, 5],
  ])('%s', (_name, cr4, efer, level) => {
    const { base } = role(CR0.PG, cr4, efer);
    expect(base & Role.levelMask).toBe(level);
    expect((base & Role.has4ByteGpte) !== 0).toBe(level === 2);
  });
  test('SMAP without WP has a bit of its own', () => {
    expect(role(CR0.PG, CR4.SMAP, 0n).base & Role.smapAndnotWp).toBe(Role.smapAndnotWp);
    expect(role(CR0.PG | CR0.WP, CR4.SMAP, 0n).base & Role.smapAndnotWp).toBe(0);
  });
});
