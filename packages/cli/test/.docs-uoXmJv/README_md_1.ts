import { svm } from '@tskvm/svm';
import { bootSector, createMachine, expandImage, GUEST_IMAGES } from 'tskvm';

const machine = await createMachine({ backend: svm(), image: bootSector(expandImage(GUEST_IMAGES.hello), 'hello') });
machine.kvm.on('mode_switch', (e) => console.log(`${e.from.name} -> ${e.to.name}: ${e.path.at(-1) ?? 'native'}`));
const stop = await machine.run();
// prints: real -> protected16: svmSetCr0
// and the switches behind it
console.log(stop.reason, machine.instructions);
