/**
 * WebAssembly's vector instructions, as far as guests' need them: names, opcodes behind the prefix FDh, types.
 * Spec: WebAssembly 2.0, section 5.4.8 (vector instructions).
 */

/** Two vectors to one. */
export const SIMD_BINARY = {
  i8x16Swizzle: 0x0e,
  i8x16Eq: 0x23,
  i8x16GtS: 0x27,
  i16x8Eq: 0x2d,
  i16x8GtS: 0x31,
  i32x4Eq: 0x37,
  i32x4GtS: 0x3b,
  f32x4Eq: 0x41,
  f32x4Ne: 0x42,
  f32x4Lt: 0x43,
  f32x4Gt: 0x44,
  f32x4Le: 0x45,
  f32x4Ge: 0x46,
  f64x2Eq: 0x47,
  f64x2Ne: 0x48,
  f64x2Lt: 0x49,
  f64x2Gt: 0x4a,
  f64x2Le: 0x4b,
  f64x2Ge: 0x4c,
  v128And: 0x4e,
  v128AndNot: 0x4f,
  v128Or: 0x50,
  v128Xor: 0x51,
  i8x16NarrowI16x8S: 0x65,
  i8x16NarrowI16x8U: 0x66,
  i8x16Add: 0x6e,
  i8x16AddSatS: 0x6f,
  i8x16AddSatU: 0x70,
  i8x16Sub: 0x71,
  i8x16SubSatS: 0x72,
  i8x16SubSatU: 0x73,
  i8x16MinS: 0x76,
  i8x16MinU: 0x77,
  i8x16MaxS: 0x78,
  i8x16MaxU: 0x79,
  i8x16AvgrU: 0x7b,
  i16x8Q15mulrSatS: 0x82,
  i16x8NarrowI32x4S: 0x85,
  i16x8NarrowI32x4U: 0x86,
  i16x8Add: 0x8e,
  i16x8AddSatS: 0x8f,
  i16x8AddSatU: 0x90,
  i16x8Sub: 0x91,
  i16x8SubSatS: 0x92,
  i16x8SubSatU: 0x93,
  i16x8Mul: 0x95,
  i16x8MinS: 0x96,
  i16x8MinU: 0x97,
  i16x8MaxS: 0x98,
  i16x8MaxU: 0x99,
  i16x8AvgrU: 0x9b,
  i32x4Add: 0xae,
  i32x4Sub: 0xb1,
  i32x4Mul: 0xb5,
  i32x4MinS: 0xb6,
  i32x4MinU: 0xb7,
  i32x4MaxS: 0xb8,
  i32x4MaxU: 0xb9,
  i32x4DotI16x8S: 0xba,
  i32x4ExtmulLowI16x8S: 0xbc,
  i32x4ExtmulHighI16x8S: 0xbd,
  i32x4ExtmulLowI16x8U: 0xbe,
  i32x4ExtmulHighI16x8U: 0xbf,
  i64x2Add: 0xce,
  i64x2Sub: 0xd1,
  i64x2Eq: 0xd6,
  i64x2GtS: 0xd9,
  i64x2ExtmulLowI32x4S: 0xdc,
  i64x2ExtmulLowI32x4U: 0xde,
  f32x4Add: 0xe4,
  f32x4Sub: 0xe5,
  f32x4Mul: 0xe6,
  f32x4Div: 0xe7,
  f32x4Pmin: 0xea,
  f32x4Pmax: 0xeb,
  f64x2Add: 0xf0,
  f64x2Sub: 0xf1,
  f64x2Mul: 0xf2,
  f64x2Div: 0xf3,
  f64x2Pmin: 0xf6,
  f64x2Pmax: 0xf7,
} as const;

/** One vector to one. */
export const SIMD_UNARY = {
  v128Not: 0x4d,
  f32x4DemoteF64x2Zero: 0x5e,
  f64x2PromoteLowF32x4: 0x5f,
  i8x16Abs: 0x60,
  f32x4Ceil: 0x67,
  f32x4Floor: 0x68,
  f32x4Trunc: 0x69,
  f32x4Nearest: 0x6a,
  f64x2Ceil: 0x74,
  f64x2Floor: 0x75,
  f64x2Trunc: 0x7a,
  i16x8ExtaddPairwiseI8x16U: 0x7d,
  i32x4ExtaddPairwiseI16x8U: 0x7f,
  i16x8Abs: 0x80,
  i16x8ExtendLowI8x16S: 0x87,
  i16x8ExtendLowI8x16U: 0x89,
  f64x2Nearest: 0x94,
  i32x4Abs: 0xa0,
  i32x4ExtendLowI16x8S: 0xa7,
  i32x4ExtendLowI16x8U: 0xa9,
  i64x2ExtendLowI32x4S: 0xc7,
  i64x2ExtendLowI32x4U: 0xc9,
  f32x4Abs: 0xe0,
  f32x4Sqrt: 0xe3,
  f64x2Abs: 0xec,
  f64x2Sqrt: 0xef,
  i32x4TruncSatF32x4S: 0xf8,
  f32x4ConvertI32x4S: 0xfa,
  i32x4TruncSatF64x2SZero: 0xfc,
  f64x2ConvertLowI32x4S: 0xfe,
} as const;

/** A vector and a count (i32, modulo the lane) to a vector. */
export const SIMD_SHIFT = {
  i8x16ShrS: 0x6c,
  i16x8Shl: 0x8b,
  i16x8ShrS: 0x8c,
  i16x8ShrU: 0x8d,
  i32x4Shl: 0xab,
  i32x4ShrS: 0xac,
  i32x4ShrU: 0xad,
  i64x2Shl: 0xcb,
  i64x2ShrS: 0xcc,
  i64x2ShrU: 0xcd,
} as const;

/** A vector to an i32. */
export const SIMD_TEST = {
  v128AnyTrue: 0x53,
  i8x16Bitmask: 0x64,
  i32x4AllTrue: 0xa3,
  i32x4Bitmask: 0xa4,
  i64x2AllTrue: 0xc3,
  i64x2Bitmask: 0xc4,
} as const;

/** A lane (immediate) of a vector: to an i32, or i64 where the name says so. */
export const SIMD_EXTRACT = {
  i8x16ExtractLaneU: 0x16,
  i16x8ExtractLaneU: 0x19,
  i32x4ExtractLane: 0x1b,
  i64x2ExtractLane: 0x1d,
} as const;
/** A vector and a value (i32, or i64 where the name says so) to the vector with that lane (immediate). */
export const SIMD_REPLACE = {
  i8x16ReplaceLane: 0x17,
  i16x8ReplaceLane: 0x1a,
  i32x4ReplaceLane: 0x1c,
  i64x2ReplaceLane: 0x1e,
} as const;

export const SIMD_PREFIX = 0xfd;
export const V128_LOAD = 0x00;
export const V128_STORE = 0x0b;
export const V128_CONST = 0x0c;
export const I8X16_SHUFFLE = 0x0d;
export const I64X2_SPLAT = 0x12;
export const F32X4_SPLAT = 0x13;
export const F64X2_SPLAT = 0x14;
export const F32X4_EXTRACT_LANE = 0x1f;
export const F64X2_EXTRACT_LANE = 0x21;

export type SimdBinary = keyof typeof SIMD_BINARY;
export type SimdUnary = keyof typeof SIMD_UNARY;
export type SimdShift = keyof typeof SIMD_SHIFT;
export type SimdTest = keyof typeof SIMD_TEST;
export type SimdExtract = keyof typeof SIMD_EXTRACT;
export type SimdReplace = keyof typeof SIMD_REPLACE;
