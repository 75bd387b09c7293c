/**
 * Which feature makes a bit of CR4 exist; TSD, PCE and the like come with the first feature that needs them.
 * Manual: APM vol. 2 section 3.1.3, SDM vol. 3 section 2.5.
 */
import { CR4 } from '../state-layout.ts';
import type { FeatureName } from './features.ts';

export const CR4_FEATURES: readonly (readonly [bigint, FeatureName])[] = [
  [CR4.VME | CR4.PVI, 'vme'],
  [CR4.TSD, 'tsc'],
  [CR4.DE, 'de'],
  [CR4.PSE, 'pse'],
  [CR4.PAE, 'pae'],
  [CR4.MCE, 'mce'],
  [CR4.PGE, 'pge'],
  [CR4.PCE, 'fpu'],
  [CR4.OSFXSR, 'fxsr'],
  [CR4.OSXMMEXCPT, 'sse'],
  [CR4.UMIP, 'umip'],
  [CR4.VMXE, 'vmx'],
  [CR4.SMXE, 'smx'],
  [CR4.FSGSBASE, 'fsgsbase'],
  [CR4.PCIDE, 'pcid'],
  [CR4.OSXSAVE, 'xsave'],
  [CR4.SMEP, 'smep'],
  [CR4.SMAP, 'smap'],
  [CR4.PKE, 'pku'],
  [CR4.PKS, 'pks'],
  [CR4.LA57, 'la57'],
  [CR4.LAM_SUP, 'lam'],
];

/** CR4 bits that exist on a processor with these features. */
export const cr4Bits = (has: (feature: FeatureName) => boolean): bigint =>
  CR4_FEATURES.reduce((mask, [bits, feature]) => (has(feature) ? mask | bits : mask), 0n);
