// A plugin of the build: what the source declares with `const`, `let` or `class` at a module's top level, esbuild's bundles declare with `var`.
// Engines fold constants into compiled code, and what a variable holds they load and check at each use; so what nobody assigns to again
// becomes `const` here. The text keeps its length: source maps hold.

const DECLARATION = /^var ([A-Za-z_$][\w$]*) = /gm;

/** Names that something assigns to, or that are declared again. */
function assigned(code: string): Set<string> {
  const seen = new Set<string>();
  const twice = new Set<string>();
  const assignment = /(?<![\w$.])([A-Za-z_$][\w$]*)\s*(?:(?:[-+*/%&|^]|\*\*|<<|>>>?|&&|\|\||\?\?)?=(?![=>])|\+\+|--)/g;
  for (const [, name] of code.matchAll(assignment)) (seen.has(name) ? twice : seen).add(name);
  for (const [, name] of code.matchAll(/(?:\+\+|--)([A-Za-z_$][\w$]*)/g)) twice.add(name);
  return twice;
}

export function keepConstants(code: string): string {
  const changed = assigned(code);
  return code.replace(DECLARATION, (text, name: string) => (changed.has(name) ? text : `const ${name}=`));
}

/** For tsup's `plugins`. */
export const constants = {
  name: 'constants',
  renderChunk(
    code: string,
    { path, map }: { path: string; map?: unknown },
  ): { code: string; map: unknown } | undefined {
    return path.endsWith('.js') ? { code: keepConstants(code), map } : undefined;
  },
};
