/**
 * The interpret engine alone, on identity-mapped memory: million guest instructions per second of processor time, median of several runs
 * (processor time, because machines that run benchmarks are rarely idle).
 * Run: `npx tsx --conditions=@tskvm/source bench/interpret.ts [kernel]`
 */
import { InterpretEngine } from '../packages/emulator/src/engines/interpret/interpret.ts';
import { MiniHost } from '../packages/emulator/src/engines/interpret/mini-host.ts';

interface Kernel {
  name: string;
  what: string;
  codeSize: 2 | 4 | 8;
  code: string;
}

/** Assembled with NASM; `what` says what the bytes do. */
const KERNELS: readonly Kernel[] = [
  {
    name: 'alu',
    what: 'eight ALU instructions, dec, jnz; 64-bit code',
    codeSize: 8,
    code: 'b9c0c62d004801d84831c24829d64821c74909f84983c1054c8d5498084d31d348ffc975e0f4',
  },
  {
    name: 'memory',
    what: 'loads and stores through the TLB over 4 MB; 64-bit code',
    codeSize: 8,
    code: 'bb00004000b980841e0031d2488b04134801c84889441308448b4413044d01c144894c131081c24810000081e2f8ff3f00ffc975d7f4',
  },
  {
    name: 'fib',
    what: 'recursive fib(27): call, ret, push, pop; 64-bit code',
    codeSize: 8,
    code: 'bf1b000000e801000000f483ff02721757ffcfe8f3ffffff5f5083ef02e8e9ffffff594801c8c389f8c3',
  },
  {
    name: 'sieve',
    what: 'sieve of a million bytes; 64-bit code',
    codeSize: 8,
    code: 'bb00004000be40420f004889df89f1b001f3aab902000000803c0b00741389c80fafc139f0730ac604030001c839f072f6ffc181f9e903000072dd31d231c90fb6040b01c2ffc139f172f4f4',
  },
  {
    name: 'alu32',
    what: 'the ALU loop in flat 32-bit code',
    codeSize: 4,
    code: 'b9c0c62d0001d831c229d621c709fd83c7058d54980831d54975eaf4',
  },
  {
    name: 'alu16',
    what: 'ALU and memory in 16-bit code, segments checked',
    codeSize: 2,
    code: 'b960ea01d831c229d621c7893e002083c7058b16002031d54975e8f4',
  },
];

const CODE = 0x1000;
const RUNS = 9;

function run(host: MiniHost, engine: InterpretEngine): number {
  host.rip = BigInt(CODE);
  host.setGpr(4, 0x8000n);
  let retired = 0;
  const start = process.cpuUsage();
  while (engine.run(1_000_000) === 'budget') retired += engine.retired;
  retired += engine.retired;
  if (host.fault) throw new Error(`fault: ${JSON.stringify(host.fault)}`);
  return retired / process.cpuUsage(start).user;
}

for (const { name, what, codeSize, code } of KERNELS) {
  if (process.argv[2] !== undefined && process.argv[2] !== name) continue;
  const host = new MiniHost();
  host.key = { codeSize, stackSize: codeSize, flat: codeSize !== 2, flatCode: codeSize !== 2, alignmentCheck: false };
  const engine = new InterpretEngine(host, { vendor: 'amd' });
  host.engine = engine;
  host.memory.writeBytes(CODE, Uint8Array.from(Buffer.from(code, 'hex')));
  const figures = Array.from({ length: RUNS }, () => run(host, engine));
  const first = figures[0];
  figures.sort((a, b) => a - b);
  const median = figures[RUNS >> 1].toFixed(0);
  const best = figures[RUNS - 1].toFixed(0);
  console.log(
    `${name.padEnd(8)} median ${median.padStart(5)}  best ${best.padStart(5)}  first ${first.toFixed(0).padStart(4)}  ${what}`,
  );
}
