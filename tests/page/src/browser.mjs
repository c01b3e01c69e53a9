// A real Chromium without a window, and pages in it that write down everything that should not happen.

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { chromium } from 'playwright-core';

/** For each condition that is waited for: when a test that hangs ends. A busy machine may be late by much. */
export const LIMIT_MS = 120_000;

const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
];

export const launch = () => chromium.launch({ executablePath: process.env.CHROMIUM, args: FLAGS });

/** A page of its own at `url`. `mistakes` holds errors, console warnings and requests to anywhere else. */
export async function openPage(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  await context.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: new URL(url).origin });
  const page = await context.newPage();
  page.setDefaultTimeout(LIMIT_MS);
  const mistakes = [];
  page.on('pageerror', (error) => mistakes.push(`error: ${error.message}`));
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) mistakes.push(`console: ${message.text()}`);
  });
  page.on('request', (request) => {
    if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(`${url}/`)) mistakes.push(`request: ${request.url()}`);
  });
  await page.goto(`${url}/`);
  return { page, mistakes, close: () => context.close() };
}

/** A whole answer as the server would stream it, for what the built-in model cannot be asked to say. */
export function answerWith(page, deltas, { finish = 'stop', status = 200, body } = {}) {
  const chunk = (choice, more = {}) => `data: ${JSON.stringify({ id: 'x', object: 'chat.completion.chunk', model: 'stand-in', choices: choice ? [{ index: 0, ...choice }] : [], ...more })}\n\n`;
  const timings = { queue_ms: 1.5, prefill_ms: 20, decode_ms: 100, device_ms: 110, cached_tokens: 4 };
  const usage = { prompt_tokens: 10, completion_tokens: 21, total_tokens: 31, prompt_tokens_details: { cached_tokens: 4 } };
  const stream = [
    ...deltas.map((delta) => chunk({ delta, finish_reason: null })),
    chunk({ delta: {}, finish_reason: finish, timings }),
    chunk(null, { usage }),
    'data: [DONE]\n\n',
  ].join('');
  return page.route('**/v1/chat/completions', (route) => route.fulfill({
    status,
    headers: { 'content-type': body ? 'application/json' : 'text/event-stream' },
    body: body ? JSON.stringify(body) : stream,
  }));
}

/** Waits until an answer is there in full; `count` is how many the conversation has by then. */
export async function answered(page, count = 1) {
  const answers = page.locator('.assistant');
  await expect(page, ([count]) => document.querySelectorAll('.assistant:not(.open)').length === count, count);
  return answers.nth(count - 1);
}

/** Types a message, sends it with Enter and gives back the answer's element. */
export async function ask(page, text, count = 1) {
  await page.fill('#prompt', text);
  await page.press('#prompt', 'Enter');
  return answered(page, count);
}

/** Waits until `condition` holds in the page. */
export const expect = (page, condition, ...args) => page.waitForFunction(condition, args);

export const textOf = (answer) => answer.locator(':scope > .text').innerText();
export const modelsListed = (page) => expect(page, () => document.getElementById('model').value !== '');
export const clipboard = (page) => page.evaluate(() => navigator.clipboard.readText());

/** What a copied command prints. */
export async function bash(command, env = {}) {
  const options = { env: { ...process.env, ...env }, maxBuffer: 1 << 24, timeout: LIMIT_MS };
  return (await promisify(execFile)('bash', ['-c', command], options)).stdout;
}

/** Opens the settings, fills some by name, and closes them. */
export async function set(page, values) {
  await page.click('#open-settings');
  for (const [name, value] of Object.entries(values)) await page.locator(`#settings [name=${name}]`).fill(value);
  await page.click('#close-settings');
}

/** Each request for an answer that the page sends, as JSON. */
export function requestsOf(page) {
  const requests = [];
  page.on('request', (request) => {
    if (request.url().endsWith('/chat/completions')) requests.push(request.postDataJSON());
  });
  return requests;
}
