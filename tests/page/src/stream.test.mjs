// Streams as they come in life: in pieces of any size, through a proxy below a prefix, slow, and stopped half-way.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { LIMIT_MS, answered, ask, bash, clipboard, expect, launch, modelsListed, openPage, requestsOf, set, textOf } from './browser.mjs';
import { startProxy } from './proxy.mjs';
import { startServer } from './server.mjs';

let server;
let proxy;
let browser;

before(async () => {
  server = await startServer();
  proxy = await startProxy(server.url);
  browser = await launch();
});
after(async () => {
  await browser?.close();
  proxy?.stop();
  await server?.stop();
});

/** Sends a message and waits until the held stream has shown its first words. */
async function askAndHold(page, text) {
  proxy.hold();
  await page.fill('#prompt', text);
  await page.press('#prompt', 'Enter');
  await expect(page, () => document.querySelector('.assistant.open > .text')?.innerText.length > 0);
  return page.locator('.assistant.open');
}

test('text is shown while it comes, and is the whole answer in the end', async () => {
  const { page, mistakes, close } = await openPage(browser, proxy.url);
  const requests = requestsOf(page);
  await modelsListed(page);
  await set(page, { temperature: '0' });
  const open = await askAndHold(page, 'Hello! Who are you?');
  const part = await open.locator(':scope > .text').innerText();
  assert.match(await open.locator('.numbers summary').innerText(), /^\d+\stokens?/);
  assert.ok(await page.isVisible('#stop'));
  assert.ok(await page.isHidden('#send'));
  proxy.release();
  const whole = await textOf(await answered(page));
  assert.ok(part.trim().length > 0 && whole.startsWith(part.trim()), `${part} | ${whole}`);
  const response = await fetch(`${server.url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...requests[0], stream: false, stream_options: null }),
  });
  assert.equal(whole, (await response.json()).choices[0].message.content);
  assert.equal(await page.locator('#status').textContent(), `Answer: ${whole}`);
  assert.deepEqual(mistakes, []);
  await close();
});

for (const how of ['button', 'Escape']) {
  test(`an answer is stopped: ${how}`, async () => {
    const { page, mistakes, close } = await openPage(browser, proxy.url);
    await modelsListed(page);
    const before = proxy.hangUps();
    await askAndHold(page, 'Hello! Who are you?');
    if (how === 'button') await page.click('#stop');
    else await page.keyboard.press('Escape');
    const answer = await answered(page);
    assert.match(await answer.locator('.numbers summary').innerText(), /stopped$/);
    assert.ok(await page.isVisible('#send'));
    assert.equal(await page.evaluate(() => document.activeElement.id), 'prompt');
    proxy.release();
    // The next answer comes after what there was of this one, and the server sees the page hang up.
    await ask(page, 'What is 3 + 4?', 2);
    const until = Date.now() + LIMIT_MS;
    while (proxy.hangUps() === before && Date.now() < until) await new Promise(setImmediate);
    assert.equal(proxy.hangUps(), before + 1);
    assert.deepEqual(mistakes, []);
    await close();
  });
}

test('the copied curl command goes where the page went, quoted for a shell', async () => {
  const { page, mistakes, close } = await openPage(browser, proxy.url);
  await modelsListed(page);
  const answer = await ask(page, 'What is 3 + 4?');
  await answer.locator('[aria-label="Copy request as curl"]').click();
  await expect(page, () => document.getElementById('toast').innerText === 'curl command copied');
  const command = await clipboard(page);
  assert.ok(command.includes("/it'\\''s/v1/chat/completions'"), command);
  assert.match(await bash(command), /data: \[DONE\]\s*$/);
  assert.deepEqual(mistakes, []);
  await close();
});

test('a reload in the middle of an answer keeps what there was', async () => {
  const { page, close } = await openPage(browser, proxy.url);
  await modelsListed(page);
  await askAndHold(page, 'Hello! Who are you?');
  await page.reload();
  const answer = await answered(page);
  assert.equal(await page.locator('.bubble').innerText(), 'Hello! Who are you?');
  assert.match(await answer.locator('.numbers summary').innerText(), /stopped$/);
  proxy.release();
  await answer.locator('[aria-label=Regenerate]').click();
  await expect(page, () => document.querySelector('.assistant:not(.open) > .text')?.innerText.length > 0);
  await close();
});

test('events at any borders', async () => {
  const { page, mistakes, close } = await openPage(browser, server.url);
  const wrong = await page.evaluate(async () => {
    const { events } = await import('/page/api.js');
    const expected = ['{"a": "é🌒"}', 'two\nlines', ' spaced', '', '[DONE]'];
    const lines = [': comment', '', 'data: {"a": "é🌒"}', '', 'event: x', 'data: two', 'data:lines', '', 'data:  spaced', '', 'data:', '', 'data: [DONE]', '', 'data: unfinished'];
    const wrong = [];
    for (const end of ['\n', '\r\n', '\r']) {
      const bytes = new TextEncoder().encode(lines.join(end) + end);
      for (let size = 1; size <= bytes.length; size += 1) {
        const pieces = [];
        for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.slice(at, at + size));
        const got = [];
        const stream = new ReadableStream({ start(c) { pieces.forEach((p) => c.enqueue(p)); c.close(); } });
        for await (const data of events(stream)) got.push(data);
        if (JSON.stringify(got) !== JSON.stringify(expected)) wrong.push([JSON.stringify(end), size, got]);
      }
    }
    return wrong.slice(0, 3);
  });
  assert.deepEqual(wrong, []);
  assert.deepEqual(mistakes, []);
  await close();
});
