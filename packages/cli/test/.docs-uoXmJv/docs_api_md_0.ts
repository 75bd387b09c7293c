import { vmx } from '@tskvm/vmx';
import { bootSector, createMachine, expandImage, GUEST_IMAGES } from 'tskvm';

let text = '';
const machine = await createMachine({
  backend: vmx({ unrestrictedGuest: false }), // KVM's module parameters in camel case
  image: bootSector(expandImage(GUEST_IMAGES.hello), 'hello.bin'),
  memory: 16 * 2 ** 20,
  onSerial: (byte) => {
    text += String.fromCharCode(byte);
  },
});
const stop = await machine.run({ maxInstructions: 1_000_000 });
console.log(stop.reason, text.split('\n')[0]);
// prints: debug-exit hello from real mode
