import { beforeEach, describe, expect, it } from 'vitest';
import { SvmExit } from './exit-codes.ts';
import { MSR_VM_CR } from './instructions.ts';
import { CODE, GUEST_RAM, type SiliconTest, silicon } from './testing.ts';
import { EventInfo, IntCtl, V } from './vmcb.ts';

/** HLT */
const HLT = 0xf4;
const MOV_EAX = (value: number): number[] => [
  0x66,
  0xb8,
  value & 255,
  (value >> 8) & 255,
  (value >> 16) & 255,
  value >>> 24,
];
const MOV_CR0_EAX = [0x0f, 0x22, 0xc0];

let t: SiliconTest;
beforeEach(async () => {
  t = await silicon();
});
/** The guest's vector `n` points to a HLT at 0x600. */
function vector(n: number): void {
  t.memory.write16(GUEST_RAM + n * 4, 0x600);
  t.memory.write16(GUEST_RAM + 0x600, HLT);
}
const rip = (): number => Number(t.vmcb.get64(V.rip));

describe('VMRUN and #VMEXIT', () => {
  it('runs `mov eax, imm; hlt` and leaves with 0x78, RIP at the HLT and the next RIP behind it', () => {
    t.load(...MOV_EAX(0x1234), HLT);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(t.vmcb.get64(V.rax)).toBe(0x1234n);
    expect(rip()).toBe(CODE + 6);
    expect(t.vmcb.get64(V.nextRip)).toBe(BigInt(CODE + 7));
  });
  it('gives no next RIP without the feature', async () => {
    t = await silicon(['nextRip']);
    t.load(HLT);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(t.vmcb.get64(V.nextRip)).toBe(0n);
  });
  it('moves the general registers both ways', () => {
    t.load(0x66, 0x43, 0x66, 0x4d, HLT); // inc ebx; dec ebp
    t.gprs[3] = 41n;
    t.gprs[5] = 8n;
    t.run();
    expect([t.gprs[3], t.gprs[5]]).toEqual([42n, 7n]);
  });
  it('refuses a broken VMCB with EXITCODE -1 and names the rows', () => {
    t.vmcb.set64(V.cr0, 0x2000_0010n);
    t.vmcb.set32(V.asid, 0);
    expect(t.run()).toBe(-1);
    expect(t.vmcb.get64(V.exitCode)).toBe(0xffff_ffff_ffff_ffffn);
    expect(t.hw.failures.map((failure) => failure.code)).toEqual(['svm.cr0.nw-without-cd', 'svm.asid.zero']);
    expect(t.hw.failures[0]).toMatchObject({ field: 'cr0', value: 0x2000_0010n, section: 'APM vol. 2 15.5.1' });
  });
  it('cannot be enabled while VM_CR.SVMDIS is set', () => {
    t.hw.wrmsr(MSR_VM_CR, 0x10n);
    expect(t.hw.wrmsr(0xc000_0080, 0x1000n)).toBe(1);
  });
  it('takes segments from the VMCB only when their clean bit is off', () => {
    t.load(0xa1, 0, 5, HLT); // mov ax, [500h]
    t.memory.write16(GUEST_RAM + 0x500, 0x1111);
    t.memory.write16(GUEST_RAM + 0x1500, 0x2222);
    t.run();
    t.vmcb.set64(V.ds + 8, 0x1000n);
    t.vmcb.set32(V.clean, 0xffff_ffff);
    t.load(0xa1, 0, 5, HLT);
    t.run();
    expect(t.vmcb.get64(V.rax) & 0xffffn).toBe(0x1111n);
    t.vmcb.set64(V.ds + 8, 0x1000n);
    t.vmcb.set32(V.clean, ~(1 << 8) >>> 0);
    t.load(0xa1, 0, 5, HLT);
    t.run();
    expect(t.vmcb.get64(V.rax) & 0xffffn).toBe(0x2222n);
  });
  it('saves what the guest loads between two exits, though the VMCB is clean', () => {
    t.vmcb.set64(V.cr0, 0x11n);
    t.gprs[3] = 0x5000n;
    t.memory.write16(GUEST_RAM + 0x500, 0x17);
    t.memory.write16(GUEST_RAM + 0x502, 0x700);
    t.memory.writeBytes(GUEST_RAM + 0x708, Uint8Array.of(0xff, 0xff, 0x40, 0x23, 0x01, 0x93, 0, 0));
    const go = (): void => {
      t.vmcb.set64(V.rip, t.vmcb.get64(V.nextRip));
      t.vmcb.set32(V.clean, ~((1 << 3) | (1 << 9)) >>> 0);
      expect(t.run()).toBe(SvmExit.HLT);
    };
    // hlt; hlt; lgdt [500h]; hlt; mov ax, 8; mov ds, ax; hlt; mov cr3, ebx; hlt; hlt
    const lgdt = [0x0f, 0x01, 0x16, 0x00, 0x05];
    t.load(HLT, HLT, ...lgdt, HLT, 0xb8, 8, 0, 0x8e, 0xd8, HLT, 0x0f, 0x22, 0xdb, HLT, HLT);
    t.run();
    go();
    expect([t.vmcb.get32(V.gdtr + 4), t.vmcb.get16(V.ds), t.vmcb.get64(V.cr3)]).toEqual([0xffff, 0, 0n]);
    go();
    expect([t.vmcb.get32(V.gdtr + 4), t.vmcb.get64(V.gdtr + 8)]).toEqual([0x17, 0x700n]);
    go();
    expect([t.vmcb.get16(V.ds), t.vmcb.get64(V.ds + 8)]).toEqual([8, 0x12340n]);
    go();
    go();
    expect(t.vmcb.get64(V.cr3)).toBe(0x5000n);
  });
});

describe('snapshots', () => {
  it('another silicon goes on where this one stood', async () => {
    t.load(0x66, 0x43, HLT, 0x66, 0x43, HLT); // inc ebx; hlt; inc ebx; hlt
    t.run();
    const other = await silicon();
    other.memory.u8.set(t.memory.u8);
    other.processor.load(structuredClone(t.processor.save()));
    other.hw.load(structuredClone(t.hw.save()));
    other.gprs.set(t.gprs);
    other.vmcb.set64(V.rip, other.vmcb.get64(V.nextRip));
    expect(other.run()).toBe(SvmExit.HLT);
    expect(other.gprs[3]).toBe(2n);
  });
});

describe('intercepts of control registers', () => {
  it('`mov cr0, eax` setting PE leaves with 0x65 and names EAX', () => {
    t.vmcb.setIntercept(SvmExit.CR0_SEL_WRITE, true);
    t.load(...MOV_EAX(0x11), ...MOV_CR0_EAX, HLT);
    expect(t.run()).toBe(SvmExit.CR0_SEL_WRITE);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(1n << 63n);
    expect(rip()).toBe(CODE + 6);
    expect(t.vmcb.get64(V.nextRip)).toBe(BigInt(CODE + 9));
    expect(t.vmcb.get64(V.cr0)).toBe(0x10n);
  });
  it('says nothing of the register without decode assists', async () => {
    t = await silicon(['decodeAssists']);
    t.vmcb.setIntercept(SvmExit.CR0_SEL_WRITE, true);
    t.load(...MOV_EAX(0x11), ...MOV_CR0_EAX, HLT);
    expect(t.run()).toBe(SvmExit.CR0_SEL_WRITE);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0n);
  });
  it('`mov cr0, ecx` gives register 1', () => {
    t.vmcb.setIntercept(SvmExit.WRITE_CR0, true);
    t.gprs[1] = 0x11n;
    t.load(0x0f, 0x22, 0xc1);
    expect(t.run()).toBe(SvmExit.WRITE_CR0);
    expect(t.vmcb.get64(V.exitInfo1)).toBe((1n << 63n) | 1n);
  });
  it('`mov cr0, eax` changing TS and MP only is native under the selective intercept', () => {
    t.vmcb.setIntercept(SvmExit.CR0_SEL_WRITE, true);
    t.load(...MOV_EAX(0x1a), ...MOV_CR0_EAX, HLT);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(t.vmcb.get64(V.cr0)).toBe(0x1an);
  });
  it('`mov cr0, eax` leaves with 0x10 when both intercepts are set', () => {
    t.vmcb.setIntercept(SvmExit.CR0_SEL_WRITE, true);
    t.vmcb.setIntercept(SvmExit.WRITE_CR0, true);
    t.load(...MOV_EAX(0x11), ...MOV_CR0_EAX);
    expect(t.run()).toBe(SvmExit.WRITE_CR0);
  });
  it('`clts` is never selective, and leaves with 0x10 and bit 63 clear', () => {
    t.vmcb.setIntercept(SvmExit.CR0_SEL_WRITE, true);
    t.vmcb.set64(V.cr0, 0x18n);
    t.load(0x0f, 0x06, HLT);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(t.vmcb.get64(V.cr0)).toBe(0x10n);
    t.vmcb.setIntercept(SvmExit.WRITE_CR0, true);
    t.load(0x0f, 0x06, HLT);
    expect(t.run()).toBe(SvmExit.WRITE_CR0);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0n);
  });
  it('`lmsw ax` is always selective, even if it changes TS only', () => {
    t.vmcb.setIntercept(SvmExit.CR0_SEL_WRITE, true);
    t.load(0xb8, 0x08, 0, 0x0f, 0x01, 0xf0, HLT);
    expect(t.run()).toBe(SvmExit.CR0_SEL_WRITE);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0n);
  });
  it('`smsw ax` leaves with 0x00', () => {
    t.vmcb.setIntercept(SvmExit.READ_CR0, true);
    t.load(0x0f, 0x01, 0xe0, HLT);
    expect(t.run()).toBe(SvmExit.READ_CR0);
  });

  // APM table 15-7: the check for illegal combinations comes before the intercept.
  const illegal: [string, number][] = [
    ['NW without CD', 0x2000_0010],
    ['PG without PE', 0x8000_0010],
  ];
  for (const [name, value] of illegal) {
    it(`\`mov cr0, eax\` with ${name} raises #GP in the guest without an exit`, () => {
      vector(13);
      t.vmcb.setIntercept(SvmExit.CR0_SEL_WRITE, true);
      t.vmcb.setIntercept(SvmExit.WRITE_CR0, true);
      t.load(...MOV_EAX(value), ...MOV_CR0_EAX, HLT);
      expect(t.run()).toBe(SvmExit.HLT);
      expect(rip()).toBe(0x600);
      expect(t.vmcb.get64(V.cr0)).toBe(0x10n);
    });
  }
  it('`mov cr0, eax` with PG while LME=1 and PAE=0 raises #GP without an exit', () => {
    vector(13);
    t.vmcb.setIntercept(SvmExit.WRITE_CR0, true);
    t.vmcb.set64(V.efer, 0x1100n);
    t.load(...MOV_EAX(0x8000_0011 | 0), ...MOV_CR0_EAX, HLT);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(rip()).toBe(0x600);
  });
  it('a write trap comes behind the instruction with the new value', () => {
    t.vmcb.setIntercept(SvmExit.CR0_WRITE_TRAP, true);
    t.load(...MOV_EAX(0x11), ...MOV_CR0_EAX, HLT);
    expect(t.run()).toBe(SvmExit.CR0_WRITE_TRAP);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0x11n);
    expect(t.vmcb.get64(V.cr0)).toBe(0x11n);
    expect(rip()).toBe(CODE + 9);
  });
});

describe('intercepts of instructions', () => {
  const rows: [string, number[], number][] = [
    ['cpuid', [0x0f, 0xa2], SvmExit.CPUID],
    ['rdtsc', [0x0f, 0x31], SvmExit.RDTSC],
    ['invd', [0x0f, 0x08], SvmExit.INVD],
    ['wbinvd', [0x0f, 0x09], SvmExit.WBINVD],
    ['pushf', [0x9c], SvmExit.PUSHF],
    ['popf', [0x9d], SvmExit.POPF],
    ['iret', [0xcf], SvmExit.IRET],
    ['int 21h', [0xcd, 0x21], SvmExit.SWINT],
    ['int1', [0xf1], SvmExit.ICEBP],
    ['rsm', [0x0f, 0xaa], SvmExit.RSM],
    ['lgdt [500h]', [0x0f, 0x01, 0x16, 0x00, 0x05], SvmExit.GDTR_WRITE],
    ['sidt [500h]', [0x0f, 0x01, 0x0e, 0x00, 0x05], SvmExit.IDTR_READ],
    ['mov eax, dr7', [0x0f, 0x21, 0xf8], SvmExit.READ_DR7],
    ['mov dr7, eax', [0x0f, 0x23, 0xf8], SvmExit.WRITE_DR7],
    ['mov eax, cr3', [0x0f, 0x20, 0xd8], SvmExit.READ_CR3],
    ['mov cr4, eax', [0x0f, 0x22, 0xe0], SvmExit.WRITE_CR4],
    ['invlpg [500h]', [0x0f, 0x01, 0x3e, 0x00, 0x05], SvmExit.INVLPG],
    ['rdpmc', [0x0f, 0x33], SvmExit.RDPMC],
  ];
  for (const [text, bytes, code] of rows) {
    it(`\`${text}\` leaves with 0x${code.toString(16)} before it does anything`, () => {
      t.vmcb.setIntercept(code, true);
      t.load(...bytes, HLT);
      expect(t.run()).toBe(code);
      expect(rip()).toBe(CODE);
      expect(t.vmcb.get64(V.nextRip)).toBe(BigInt(CODE + bytes.length));
    });
  }
  it('`int 21h` gives the vector, `invlpg` the address', () => {
    t.vmcb.setIntercept(SvmExit.SWINT, true);
    t.load(0xcd, 0x21);
    t.run();
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0x21n);
    t.vmcb.setIntercept(SvmExit.INVLPG, true);
    t.load(0x0f, 0x01, 0x3e, 0x00, 0x05);
    t.run();
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0x500n);
  });
  it('`pause` leaves only when the filter is used up', () => {
    t.vmcb.setIntercept(SvmExit.PAUSE, true);
    t.vmcb.set16(V.pauseFilterCount, 2);
    t.load(0xf3, 0x90, 0xf3, 0x90, 0xf3, 0x90, HLT);
    expect(t.run()).toBe(SvmExit.PAUSE);
    expect(rip()).toBe(CODE + 4);
  });
});

describe('permission maps', () => {
  it('`out 80h, al` leaves only if its bit is set, with port, size and next RIP', () => {
    t.vmcb.setIntercept(SvmExit.IOIO, true);
    t.load(0xe6, 0x80, HLT);
    expect(t.run()).toBe(SvmExit.HLT);
    t.memory.write8(0x4000 + 0x80 / 8, 1);
    t.load(0xe6, 0x80, HLT);
    expect(t.run()).toBe(SvmExit.IOIO);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0x80_0090n);
    expect(t.vmcb.get64(V.exitInfo2)).toBe(BigInt(CODE + 2));
  });
  it('`in eax, dx` tests each of its four ports', () => {
    t.vmcb.setIntercept(SvmExit.IOIO, true);
    t.memory.write8(0x4000 + 0x88 / 8, 1);
    t.gprs[2] = 0x85n;
    t.load(0x66, 0xed, HLT);
    expect(t.run()).toBe(SvmExit.IOIO);
    expect(t.vmcb.get64(V.exitInfo1) & 0xffff_007fn).toBe(0x85_0041n);
  });
  it('`rep outsb` reports string, REP and segment', () => {
    t.vmcb.setIntercept(SvmExit.IOIO, true);
    t.memory.fill(0x4000, 0x3000, 0xff);
    t.gprs[1] = 3n;
    t.gprs[2] = 0x3f8n;
    t.load(0xf3, 0x6e, HLT);
    expect(t.run()).toBe(SvmExit.IOIO);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0x3f8_0c9cn);
  });
  it('`rdmsr` and `wrmsr` have a bit each; MSRs outside the ranges always leave', () => {
    t.vmcb.setIntercept(SvmExit.MSR, true);
    t.memory.write8(0x8000 + 0x800 + 0x20, 0x20); // C0000082: bits 260 (read), 261 (write)
    t.gprs[1] = 0xc000_0082n;
    t.load(0x0f, 0x32, 0x0f, 0x30, HLT);
    expect(t.run()).toBe(SvmExit.MSR);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(1n);
    expect(rip()).toBe(CODE + 2);
    t.gprs[1] = 0x4b56_4d00n;
    t.load(0x0f, 0x32, HLT);
    expect(t.run()).toBe(SvmExit.MSR);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0n);
  });
});

describe('exceptions and events', () => {
  it('an intercepted #UD leaves with 0x46, RIP at the instruction', () => {
    t.vmcb.setIntercept(SvmExit.EXCP_BASE + 6, true);
    t.load(0x90, 0x0f, 0x0b);
    expect(t.run()).toBe(SvmExit.EXCP_BASE + 6);
    expect(rip()).toBe(CODE + 1);
  });
  it('a triple fault leaves with SHUTDOWN', () => {
    t.vmcb.set32(V.idtr + 4, 0);
    t.load(0x0f, 0x0b);
    expect(t.run()).toBe(SvmExit.SHUTDOWN);
  });
  // fninit; fldcw [500h] (ZE not masked); fld1; fldz; fdivp; fld1
  const DIVIDE = [0xdb, 0xe3, 0xd9, 0x2e, 0x00, 0x05, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0xd9, 0xe8];
  it('an x87 exception without CR0.NE leaves with FERR_FREEZE in front of the next waiting instruction', () => {
    t.memory.write16(GUEST_RAM + 0x500, 0x37b);
    t.vmcb.setIntercept(SvmExit.FERR_FREEZE, true);
    t.load(...DIVIDE, HLT);
    expect(t.run()).toBe(SvmExit.FERR_FREEZE);
    expect(rip()).toBe(CODE + 12);
  });
  it('without the intercept the guest is frozen there until a physical interrupt leaves', () => {
    t.memory.write16(GUEST_RAM + 0x500, 0x37b);
    t.load(...DIVIDE, HLT);
    expect(t.run()).toBe(SvmExit.INTR);
    expect(rip()).toBe(CODE + 12);
    expect(t.run()).toBe(SvmExit.INTR);
    expect(rip()).toBe(CODE + 12);
  });
  it('a physical interrupt leaves with INTR at the next boundary', () => {
    t.load(0xeb, 0xfe);
    expect(t.run()).toBe(SvmExit.INTR);
    expect(rip()).toBe(CODE);
  });
  it('EVENTINJ delivers an interrupt through the IVT and is consumed', () => {
    vector(0x20);
    t.load(0x90, HLT);
    t.vmcb.set32(V.eventInj, EventInfo.VALID | 0x20);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(rip()).toBe(0x600);
    expect(t.guest(0x7ffa)).toBe(CODE);
    expect(t.vmcb.get32(V.eventInj) & EventInfo.VALID).toBe(0);
    expect(t.vmcb.get32(V.exitIntInfo) & EventInfo.VALID).toBe(0);
  });
  it('EVENTINJ of INT n returns behind the instruction by the next-RIP field', () => {
    vector(0x21);
    t.load(0xcd, 0x21);
    t.vmcb.set64(V.nextRip, BigInt(CODE + 2));
    t.vmcb.set32(V.eventInj, (EventInfo.VALID | EventInfo.TYPE_SOFT | 0x21) >>> 0);
    t.run();
    expect(t.guest(0x7ffa)).toBe(CODE + 2);
  });
  it('an exit during delivery reports the event in EXITINTINFO', () => {
    t.load(0x90, HLT);
    t.vmcb.set64(V.ss + 8, 0x40_0000n); // the stack is not mapped
    t.vmcb.set32(V.eventInj, EventInfo.VALID | 0x20);
    vector(0x20);
    expect(t.run()).toBe(SvmExit.NPF);
    expect(t.vmcb.get32(V.exitIntInfo)).toBe((EventInfo.VALID | 0x20) >>> 0);
    expect(t.vmcb.get64(V.exitInfo2)).toBe(0x40_7ffen);
  });
  it('an exit while INT1 is delivered leaves RIP behind it: its #DB, injected again, comes once', () => {
    t.load(0xf1, HLT);
    t.vmcb.set64(V.ss + 8, 0x40_0000n);
    vector(1);
    expect(t.run()).toBe(SvmExit.NPF);
    expect(t.vmcb.get32(V.exitIntInfo)).toBe((EventInfo.VALID | EventInfo.TYPE_EXCEPTION | 1) >>> 0);
    expect(rip()).toBe(CODE + 1);
  });
  it('V_IRQ with the VINTR intercept is an interrupt window: it leaves once IF is set and the shadow is over', () => {
    t.vmcb.setIntercept(SvmExit.VINTR, true);
    t.vmcb.or32(V.intCtl, IntCtl.V_IRQ | IntCtl.V_INTR_PRIO_MASK);
    t.load(0x90, 0xfb, 0x90, 0x90, HLT);
    expect(t.run()).toBe(SvmExit.VINTR);
    expect(rip()).toBe(CODE + 3);
  });
  it('V_IRQ without it delivers the vector unless V_TPR is as high', () => {
    vector(0x30);
    t.vmcb.or32(V.intCtl, IntCtl.V_IRQ | (3 << 16) | 3);
    t.vmcb.set32(V.intVector, 0x30);
    t.load(0xfb, 0x90, 0x90, HLT);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(rip()).toBe(CODE + 3);
    expect(t.vmcb.get32(V.intCtl) & IntCtl.V_IRQ).toBe(IntCtl.V_IRQ);
    t.vmcb.set8(V.intCtl, 2);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(rip()).toBe(0x600);
    expect(t.vmcb.get32(V.intCtl) & IntCtl.V_IRQ).toBe(0);
  });
  it('`sti; hlt` leaves with the shadow in int_state', () => {
    t.load(0xfb, HLT);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(t.vmcb.get32(V.intState)).toBe(1);
  });
});

describe('nested page faults', () => {
  it('a read of unmapped memory leaves with the address and a final user fault', () => {
    t.vmcb.set64(V.ds + 8, 0x60_0000n);
    t.load(0xa1, 0x34, 0x12);
    expect(t.run()).toBe(SvmExit.NPF);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0x1_0000_0004n);
    expect(t.vmcb.get64(V.exitInfo2)).toBe(0x60_1234n);
    expect(rip()).toBe(CODE);
    expect(t.vmcb.get8(V.insnLen)).toBe(15);
    expect([0, 1, 2].map((n) => t.vmcb.get8(V.insnBytes + n))).toEqual([0xa1, 0x34, 0x12]);
  });
  it('a fetch sets the instruction bit', () => {
    t.vmcb.set64(V.cs + 8, 0x60_0000n);
    t.vmcb.set64(V.rip, 0n);
    expect(t.run()).toBe(SvmExit.NPF);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0x1_0000_0014n);
  });
  it('a write to a page that is only readable sets P and W', () => {
    t.memory.write64(0x12000, BigInt(GUEST_RAM + 0x85));
    t.load(0xa3, 0x00, 0x05);
    expect(t.run()).toBe(SvmExit.NPF);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0x1_0000_0007n);
  });
  it('sees a changed table after TLB control flushed the ASID', () => {
    t.load(0xa1, 0x00, 0x05, HLT);
    t.run();
    t.memory.write64(0x12000, 0n);
    t.vmcb.set8(V.tlbCtl, 3);
    t.load(0xa1, 0x00, 0x05, HLT);
    expect(t.run()).toBe(SvmExit.NPF);
  });
});
