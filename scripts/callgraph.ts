// The program's own call graph, from its source: which function can call which, static calls and handler tables resolved.
// Writes packages/cli/src/data/callgraph.ts as part of the build. Analysis: ts-morph (TypeScript's own symbols).
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Identifier, type Symbol as MorphSymbol, Node, Project, type SourceFile, SyntaxKind } from 'ts-morph';

const root = fileURLToPath(new URL('..', import.meta.url));
const output = join(root, 'packages/cli/src/data/callgraph.ts');

/** A function, a static call (`staticCall.x`), a port of the emulator (`emulateOps.x`) or a table of handlers. */
interface GraphNode {
  name: string;
  file: string;
  line: number;
  kind: 'function' | 'table' | 'staticCall' | 'emulateOp';
  /** Has a frame in recorded call paths. */
  framed: boolean;
  /** Names that this one can call, with the table key or kind where there is one. */
  calls: Map<string, string>;
}

const project = new Project({
  tsConfigFilePath: join(root, 'tsconfig.json'),
  skipAddingFilesFromTsConfig: true,
  compilerOptions: { customConditions: ['@tskvm/source'] },
});
project.addSourceFilesAtPaths([
  join(root, 'packages/{core,svm,vmx}/src/**/*.ts'),
  join(root, 'packages/emulator/src/{engines/evaluate,system,semantics,cpu}/**/*.ts'),
  `!${join(root, 'packages/**/*.test.ts')}`,
]);

const nodes = new Map<string, GraphNode>();
const bySymbol = new Map<MorphSymbol, GraphNode>();
const bodies: { node: GraphNode; body: Node }[] = [];

function add(name: string, at: Node, kind: GraphNode['kind'], framed: boolean): GraphNode {
  const file = relative(root, at.getSourceFile().getFilePath());
  const unique = nodes.has(name) && nodes.get(name)?.file !== file ? `${name}@${file}` : name;
  let node = nodes.get(unique);
  if (!node)
    nodes.set(unique, (node = { name: unique, file, line: at.getStartLineNumber(), kind, framed, calls: new Map() }));
  return node;
}
function abstractNode(name: string, kind: 'staticCall' | 'emulateOp'): GraphNode {
  let node = nodes.get(name);
  if (!node)
    nodes.set(name, (node = { name, file: '', line: 0, kind, framed: kind === 'staticCall', calls: new Map() }));
  return node;
}

/** The function behind an initializer, looking through `frame('name', fn)` and the like. */
function functionOf(initializer: Node | undefined): { fn: Node; framed: boolean } | null {
  if (!initializer) return null;
  if (Node.isArrowFunction(initializer) || Node.isFunctionExpression(initializer))
    return { fn: initializer, framed: false };
  if (Node.isCallExpression(initializer)) {
    const framed = initializer.getExpression().getText() === 'frame';
    for (const argument of initializer.getArguments()) {
      const inner = functionOf(argument);
      if (inner && framed) return { fn: inner.fn, framed: true };
      if (framed && Node.isIdentifier(argument)) return { fn: argument, framed: true };
    }
  }
  return null;
}
const isTable = (initializer: Node | undefined): boolean => {
  if (!initializer) return false;
  const text = initializer.getText();
  return (
    (Node.isObjectLiteralExpression(initializer) ||
      Node.isArrayLiteralExpression(initializer) ||
      Node.isNewExpression(initializer) ||
      Node.isAsExpression(initializer) ||
      Node.isSatisfiesExpression(initializer)) &&
    text.length > 40
  );
};

/** Functions that ask for their frame themselves: `ownFrame('name', fn)`. */
const ownFrames = (file: SourceFile): Set<string> =>
  new Set(
    file
      .getStatements()
      .filter(Node.isExpressionStatement)
      .map((statement) => statement.getExpression())
      .filter(Node.isCallExpression)
      .filter((call) => call.getExpression().getText() === 'ownFrame')
      .map((call) => call.getArguments()[1].getText()),
  );

function collect(file: SourceFile): void {
  const framed = ownFrames(file);
  for (const fn of file.getFunctions()) {
    const name = fn.getName();
    if (!name) continue;
    const node = add(name, fn, 'function', framed.has(name));
    const symbol = fn.getSymbol();
    if (symbol) bySymbol.set(symbol, node);
    bodies.push({ node, body: fn });
  }
  for (const declaration of file.getVariableDeclarations()) {
    const initializer = declaration.getInitializer();
    const found = functionOf(initializer);
    const table = !found && isTable(initializer);
    if (!found && !table) continue;
    const node = add(declaration.getName(), declaration, found ? 'function' : 'table', found?.framed ?? false);
    const symbol = declaration.getSymbol();
    if (symbol) bySymbol.set(symbol, node);
    bodies.push({ node, body: found ? found.fn : (initializer as Node) });
  }
  for (const cls of file.getClasses()) {
    for (const method of [...cls.getMethods(), ...cls.getStaticMethods()]) {
      const node = add(`${cls.getName()}.${method.getName()}`, method, 'function', false);
      const symbol = method.getSymbol();
      if (symbol) bySymbol.set(symbol, node);
      bodies.push({ node, body: method });
      if (implementsEmulateOps(cls.getImplements().map((i) => i.getText())))
        link(abstractNode(`emulateOps.${method.getName()}`, 'emulateOp'), node.name, '');
    }
  }
}
const implementsEmulateOps = (names: string[]): boolean => names.some((n) => n === 'X86EmulateOps');
const link = (from: GraphNode, to: string, label: string): void => {
  const known = from.calls.get(to);
  if (from.name === to) return;
  if (known === undefined) from.calls.set(to, label);
  else if (from.kind === 'table' && known !== '' && label !== '') {
    // One handler under several keys: `SvmExit.READ_CR0, READ_CR3, WRITE_CR0`.
    const short = label.startsWith(known.slice(0, known.indexOf('.') + 1))
      ? label.slice(known.indexOf('.') + 1)
      : label;
    if (label !== known && !known.split(', ').includes(short)) from.calls.set(to, `${known}, ${short}`);
  }
};

function resolve(id: Identifier): GraphNode | undefined {
  const symbol = id.getSymbol();
  if (!symbol) return undefined;
  return bySymbol.get(symbol.getAliasedSymbol() ?? symbol);
}

/** `kvm.calls.setCr0(…)`, `ops.setCr(…)`: calls that are bound at run time. */
function dynamicTarget(id: Identifier): GraphNode | undefined {
  const parent = id.getParent();
  if (!Node.isPropertyAccessExpression(parent) || parent.getNameNode() !== id) return undefined;
  const receiver = parent.getExpression();
  if (receiver.getText().endsWith('calls')) return abstractNode(`staticCall.${id.getText()}`, 'staticCall');
  if (/(^|\.)ops$/.test(receiver.getText())) return abstractNode(`emulateOps.${id.getText()}`, 'emulateOp');
  return undefined;
}

/** Key of a table entry in which an identifier stands. */
function entryKey(id: Node): string {
  const assignment = id.getFirstAncestorByKind(SyntaxKind.PropertyAssignment);
  return assignment
    ? assignment
        .getNameNode()
        .getText()
        .replace(/^\[|\]$/g, '')
    : '';
}

const OPS_FILES = /packages\/(svm|vmx)\/src\/ops\.ts$/;
function analyse({ node, body }: { node: GraphNode; body: Node }): void {
  for (const id of body.getDescendantsOfKind(SyntaxKind.Identifier)) {
    const dynamic = dynamicTarget(id);
    if (dynamic) {
      link(node, dynamic.name, '');
      continue;
    }
    const target = resolve(id);
    if (!target || target === node) continue;
    link(node, target.name, node.kind === 'table' ? entryKey(id) : '');
  }
  if (Node.isIdentifier(body)) {
    const target = resolve(body);
    if (target) link(node, target.name, '');
  }
}
/** The vendor's ops object binds each static call; core's emulate ops object binds each emulateOp. */
function bindOps(file: SourceFile): void {
  const vendor = OPS_FILES.exec(file.getFilePath())?.[1];
  for (const literal of file.getDescendantsOfKind(SyntaxKind.ObjectLiteralExpression)) {
    const type = literal.getContextualType()?.getText() ?? literal.getParent()?.getText().slice(0, 200) ?? '';
    const isEmulateOps =
      /X86EmulateOps/.test(type) || /X86EmulateOps/.test(literal.getParentOrThrow().getText().slice(0, 160));
    if (!vendor && !isEmulateOps) continue;
    for (const property of literal.getProperties()) {
      const name = 'getName' in property ? (property as { getName(): string }).getName() : '';
      const ids = [property, ...property.getDescendants()].filter(Node.isIdentifier);
      const source = abstractNode(
        vendor ? `staticCall.${name}` : `emulateOps.${name}`,
        vendor ? 'staticCall' : 'emulateOp',
      );
      for (const id of ids) {
        const shorthand = Node.isShorthandPropertyAssignment(property) ? property.getValueSymbol() : undefined;
        const target = shorthand ? bySymbol.get(shorthand.getAliasedSymbol() ?? shorthand) : resolve(id);
        if (target && target.kind === 'function') link(source, target.name, vendor ?? '');
      }
    }
  }
}

const files = project.getSourceFiles();
for (const file of files) collect(file);
for (const entry of bodies) analyse(entry);
for (const file of files) bindOps(file);

const rows = [...nodes.values()]
  .filter((node) => node.kind !== 'table' || node.calls.size > 0)
  .sort((a, b) => (a.name < b.name ? -1 : 1))
  .map((n) => {
    const calls = [...n.calls].filter(([to]) => nodes.has(to)).sort(([a], [b]) => (a < b ? -1 : 1));
    const list = calls.map(([to, label]) => (label ? `['${to}', ${JSON.stringify(label)}]` : `['${to}']`)).join(', ');
    return `  ['${n.name}', '${n.kind}', '${n.file ? `${n.file}:${n.line}` : ''}', ${n.framed ? 1 : 0}, [${list}]],`;
  });
const text = `/** The program's call graph, made by scripts/callgraph.ts from the source. Generated: don't edit. */
import type { CallGraphRow } from '../report/call-graph.ts';

/** [name, kind, file:line, framed, [callee, table key or vendor]…]. */
export const CALL_GRAPH: readonly CallGraphRow[] = [
${rows.join('\n')}
];
`;
mkdirSync(dirname(output), { recursive: true });
// Written only when it changed, so that builds stay cached.
if (!existsSync(output) || readFileSync(output, 'utf8') !== text) writeFileSync(output, text);
process.stdout.write(`callgraph: ${rows.length} functions\n`);
