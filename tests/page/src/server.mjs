// The real binary with the model that is built into it, on a free port.

import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

export const ROOT = fileURLToPath(new URL('../../..', import.meta.url));

const START_LIMIT_MS = 300_000;

/** Starts a server; `url` has no slash at its end. */
export async function startServer(...flags) {
  const { RUST_LOG, ...env } = process.env;
  const child = spawn(process.env.PERILUNE_BINARY, ['serve', '--port', '0', '--log-format', 'json', ...flags], {
    cwd: ROOT,
    env,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  // Also when this process ends by a mistake: no server is left behind.
  process.once('exit', () => child.kill('SIGKILL'));
  const ended = new Promise((resolve) => child.once('exit', resolve));
  const url = await readyUrl(child);
  const stop = () => {
    child.kill('SIGKILL');
    return ended;
  };
  return { url, stop };
}

function readyUrl(child) {
  const said = [];
  return new Promise((resolve, reject) => {
    const fail = (why) => {
      child.kill('SIGKILL');
      reject(new Error(`${why}; the server said:\n${said.join('\n')}`));
    };
    const timer = setTimeout(fail, START_LIMIT_MS, 'not ready in time');
    child.once('error', (error) => fail(`the binary does not start: ${error.message}`));
    child.once('exit', () => fail('the server ended'));
    createInterface({ input: child.stderr }).on('line', (line) => {
      said.push(line);
      const ready = /ready on (http:\/\/[\w.:[\]]+)/.exec(line);
      if (!ready) return;
      clearTimeout(timer);
      resolve(ready[1]);
    });
  });
}
