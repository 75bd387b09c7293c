/** @module tskvm: the PC as a library, free of Node. */
export { expandImage, type SparseImage } from './guests/image.ts';
export { GUEST_IMAGES } from './guests/images.ts';
export * from './machine/bus.ts';
export { chooseProcessors, parseCpu } from './machine/cpu.ts';
export { type BlockImage, memoryImage } from './machine/devices/ide.ts';
export { UsageError } from './machine/errors.ts';
export * from './machine/loaders/image.ts';
export { isMultiboot, type MultibootOptions, multiboot } from './machine/loaders/multiboot.ts';
export * from './machine/machine.ts';
export type { MachineOptions } from './machine/machine-options.ts';
