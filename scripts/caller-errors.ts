/** What callers are told, read from the source: each code with its errno or exit status and the literal text of its message. */
import { join } from 'node:path';
import { type CallExpression, type NewExpression, Node, Project, type SourceFile, SyntaxKind } from 'ts-morph';

export interface CallerError {
  code: string;
  errno: string;
  message: string;
}

/** What shapes say of a value that does not fit. */
const FIT = '… is …: give …';
const CODE = /^[A-Z][A-Z0-9_]+$/;
/** Where the errno is a variable: an op's answer. */
const ANSWER = "the op's answer";
const USAGE = 'exit status 2';
const STOP = 'exit status 1';

/** Literal text of a message; what is filled in is an ellipsis. */
function messageOf(node: Node | undefined): string {
  if (!node) return '';
  if (Node.isStringLiteral(node) || Node.isNoSubstitutionTemplateLiteral(node)) return node.getLiteralText();
  if (Node.isIdentifier(node)) {
    const [definition] = node.getDefinitionNodes();
    return Node.isVariableDeclaration(definition) ? messageOf(definition.getInitializer()) : '';
  }
  if (!Node.isTemplateExpression(node)) return '';
  const spans = node.getTemplateSpans().map((span) => `…${span.getLiteral().getLiteralText()}`);
  return node.getHead().getLiteralText() + spans.join('');
}

/** A code, or the two of a choice. */
function codesOf(node: Node | undefined): string[] {
  if (Node.isConditionalExpression(node)) return [...codesOf(node.getWhenTrue()), ...codesOf(node.getWhenFalse())];
  return Node.isStringLiteral(node) && CODE.test(node.getLiteralText()) ? [node.getLiteralText()] : [];
}

type Call = NewExpression | CallExpression;
const callsIn = (file: SourceFile): Call[] => [
  ...file.getDescendantsOfKind(SyntaxKind.NewExpression),
  ...file.getDescendantsOfKind(SyntaxKind.CallExpression),
];
const errnoIn = (node: Node | undefined): string | undefined => /^Errno\.(\w+)$/.exec(node?.getText() ?? '')?.[1];

/** Functions of a file that make a KvmError of the code that they are given, with its errno. */
function helpersOf(file: SourceFile): Map<string, string> {
  const helpers = new Map<string, string>();
  for (const made of file.getDescendantsOfKind(SyntaxKind.NewExpression)) {
    const [code, errno] = made.getArguments();
    const value = errnoIn(errno);
    const name = made.getFirstAncestorByKind(SyntaxKind.VariableDeclaration)?.getName();
    if (Node.isIdentifier(code) && value !== undefined && name !== undefined) helpers.set(name, value);
  }
  return helpers;
}

/** Errno or exit status and message of a call whose first argument is a code; undefined: it refuses nothing. */
function refusalOf(call: Call, helpers: ReadonlyMap<string, string>): Omit<CallerError, 'code'> | undefined {
  const [, second, third] = call.getArguments();
  const callee = call.getExpression().getText();
  const errno = errnoIn(second);
  if (callee === 'requireFit') return { errno: USAGE, message: FIT };
  if (callee === 'UsageError') return { errno: USAGE, message: messageOf(second) };
  if (callee === 'requireShape' && errno !== undefined) return { errno, message: messageOf(third) + FIT };
  if (errno !== undefined) return { errno, message: messageOf(third) };
  if (callee === 'KvmError') return { errno: ANSWER, message: messageOf(third) };
  const own = helpers.get(callee);
  return own === undefined ? undefined : { errno: own, message: messageOf(second) };
}

const textOf = (object: Node, name: string): string => {
  const property = Node.isObjectLiteralExpression(object) ? object.getProperty(name) : undefined;
  return Node.isPropertyAssignment(property) ? messageOf(property.getInitializer()) : '';
};

/** Rows of tables {code, rule}, and ends of a run {code, message}. Several rules may have one code. */
function rowsOf(file: SourceFile): CallerError[] {
  const rows = file
    .getDescendantsOfKind(SyntaxKind.ObjectLiteralExpression)
    .filter((row) => CODE.test(textOf(row, 'code')));
  return [...new Set(rows.map((row) => textOf(row, 'code')))].flatMap((code) => {
    const all = rows.filter((row) => textOf(row, 'code') === code);
    const broken = all.map((row) => textOf(row, 'rule')).filter((rule) => rule !== '');
    if (broken.length > 0) return [{ code, errno: 'EINVAL', message: `…: ${broken.join(', or: ')}` }];
    const message = all.map((row) => textOf(row, 'message')).find((text) => text !== '');
    return message === undefined ? [] : [{ code, errno: STOP, message }];
  });
}

const errorsOf = (file: SourceFile): CallerError[] => {
  const helpers = helpersOf(file);
  const refusals = callsIn(file).flatMap((call) => {
    const codes = codesOf(call.getArguments()[0]);
    const refusal = codes.length > 0 ? refusalOf(call, helpers) : undefined;
    return refusal === undefined ? [] : codes.map((code) => ({ code, ...refusal }));
  });
  return [...refusals, ...rowsOf(file)];
};

/** All of them, one for each code and errno: the first that has a text. */
export function callerErrors(root: string): CallerError[] {
  const project = new Project({ compilerOptions: { allowJs: false } });
  project.addSourceFilesAtPaths([
    join(root, 'packages/{core,svm,vmx,cli}/src/**/*.ts'),
    `!${join(root, 'packages/**/*.test.ts')}`,
    `!${join(root, 'packages/*/src/testing/**')}`,
  ]);
  const found = new Map<string, CallerError>();
  for (const error of project.getSourceFiles().flatMap(errorsOf)) {
    const key = `${error.code} ${error.errno}`;
    if ((found.get(key)?.message ?? '') === '') found.set(key, error);
  }
  return [...found.values()].sort((a, b) => (a.code + a.errno < b.code + b.errno ? -1 : 1));
}
