import { svm } from '@tskvm/svm';
import { bootSector, createMachine, expandImage, GUEST_IMAGES } from 'tskvm';

const machine = await createMachine({
  backend: svm(),
  image: bootSector(expandImage(GUEST_IMAGES.hello), 'hello.bin'),
});
const exits = new Map<string, number>();
machine.kvm.on('kvm_exit', (e) => exits.set(e.name, (exits.get(e.name) ?? 0) + 1));
machine.kvm.on('mode_switch', (e) => console.log(e.from.name, '->', e.to.name, e.exit?.name ?? e.why));
// prints: real -> protected16 cr0_sel_write
// prints: protected16 -> real cr0_sel_write
await machine.run();
console.log(exits.get('cr0_sel_write'));
// prints: 2
