// A real Chromium without a window, and pages in it that write down everything that should not happen.

import { chromium } from 'playwright-core';

/** For each condition that is waited for. */
const LIMIT_MS = 20_000;

const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
];

export const launch = () => chromium.launch({ executablePath: process.env.CHROMIUM, args: FLAGS });

/** A page of its own at `url`. `mistakes` holds errors, console warnings and requests to anywhere else. */
export async function openPage(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  await context.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: url });
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
