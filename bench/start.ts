/** Milliseconds from `createMachine` to behind the first guest instruction, in a fresh process: `npx tsx --conditions=@tskvm/source bench/start.ts svm|vmx`. */
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { bootSector, createMachine, expandImage, GUEST_IMAGES } from '../packages/cli/src/index.ts';

const image = bootSector(expandImage(GUEST_IMAGES.hello), 'hello');
const start = performance.now();
const machine = await createMachine({ backend: process.argv[2] === 'vmx' ? vmx() : svm(), image });
machine.runSlice(1);
process.stdout.write(`${(performance.now() - start).toFixed(1)}\n`);
process.exit(machine.instructions === 1 ? 0 : 1);
