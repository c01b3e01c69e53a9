// What may stand between a page and its server: a proxy below a prefix, which hands streams on in pieces of any size, and can keep
// one open for as long as a test looks at it.

import { createServer, request } from 'node:http';

/** With a character that shells read as their own. */
export const PREFIX = "/it's";

/**
 * Streams are cut into pieces of 1 to `pieceLenMax` bytes. After `hold()`, each stream stops behind its first event that has text until
 * `release()`, or until the page hangs up, which `hangUps` counts.
 */
export async function startProxy(target, { pieceLenMax = 7 } = {}) {
  const state = { hangUps: 0, gate: Promise.resolve(), open: () => {} };
  const server = createServer((incoming, outgoing) => {
    const path = incoming.url.slice(PREFIX.length) || '/';
    const { connection, ...headers } = incoming.headers;
    const upstream = request(target + path, { method: incoming.method, headers }, (answer) => {
      outgoing.writeHead(answer.statusCode, answer.headers);
      const isStream = answer.headers['content-type'] === 'text/event-stream';
      if (!isStream) return answer.pipe(outgoing);
      return handOn(answer, outgoing, { state, pieceLenMax }).catch(() => outgoing.destroy());
    });
    upstream.on('error', () => outgoing.destroy());
    outgoing.on('close', () => {
      if (!outgoing.writableFinished) state.hangUps += 1;
      upstream.destroy();
    });
    incoming.pipe(upstream);
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const origin = `http://127.0.0.1:${server.address().port}`;
  return {
    url: origin + PREFIX,
    hold: () => { state.gate = new Promise((resolve) => { state.open = resolve; }); },
    release: () => state.open(),
    hangUps: () => state.hangUps,
    stop: () => { server.closeAllConnections(); server.close(); },
  };
}

/** The end of an event that has text: however much of an answer the server had to say at once, its end is still to come. */
const EVENT_WITH_TEXT = /"content":"[^\n]*\n\n/;

async function handOn(answer, outgoing, { state, pieceLenMax }) {
  let sent = '';
  let pieceLen = 1;
  for await (const chunk of answer) {
    for (let at = 0; at < chunk.length; at += pieceLen) {
      // 1, 2, … and again: borders fall everywhere, and in the same places each time.
      pieceLen = (pieceLen % pieceLenMax) + 1;
      if (EVENT_WITH_TEXT.test(sent)) await state.gate;
      const piece = chunk.subarray(at, at + pieceLen);
      sent += piece.toString('latin1');
      if (!outgoing.write(piece)) await new Promise((resolve) => outgoing.once('drain', resolve).once('close', resolve));
      if (outgoing.destroyed) return;
      // A turn of the loop for each piece, or the system joins them.
      await new Promise(setImmediate);
    }
  }
  outgoing.end();
}
