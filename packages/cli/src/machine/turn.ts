/** A turn of the event loop for everybody else, without the millisecond that timers wait: a machine may want hundreds in a second. */

type Later = (callback: () => void) => unknown;

/** By messages: browsers. */
function byMessages(): Later {
  const { port1, port2 } = new MessageChannel();
  const waiting: (() => void)[] = [];
  port1.onmessage = () => waiting.shift()?.();
  return (callback) => {
    waiting.push(callback);
    port2.postMessage(null);
  };
}

const { setImmediate } = globalThis as { setImmediate?: Later };
let later: Later | undefined = setImmediate;

/** Resolves when the event loop has had a turn: input, timers and drawing come in between. */
export function turn(): Promise<void> {
  later ??= byMessages();
  return new Promise((resolve) => void later!(resolve));
}
