// Who can use the page: with a key, by keyboard, on a phone, with a screen reader.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import { answerWith, answered, ask, bash, clipboard, expect, launch, modelsListed, openPage, textOf } from './browser.mjs';
import { ROOT, startServer } from './server.mjs';

const KEY = "it's-a-key";
const AXE = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

let open;
let guarded;
let browser;

before(async () => {
  [open, guarded, browser] = await Promise.all([startServer(), startServer('--api-key', KEY), launch()]);
});
after(async () => {
  await browser?.close();
  await Promise.all([open?.stop(), guarded?.stop()]);
});

test('a server with a key says so, takes it, and keeps it in the tab only', async () => {
  const { page, mistakes, close } = await openPage(browser, guarded.url);
  await expect(page, () => document.getElementById('notice').innerText.startsWith('This server wants an API key.'));
  const refused = await ask(page, 'Hello');
  assert.match(await refused.locator('.error').innerText(), /^This server wants an API key/);
  await refused.locator('text=Enter the API key').click();
  assert.equal(await page.evaluate(() => document.activeElement.id), 'key');
  await page.keyboard.type('wrong');
  await page.keyboard.press('Tab');
  await expect(page, () => document.getElementById('notice').innerText.startsWith('The server does not accept this API key.'));
  await page.fill('#key', KEY);
  await page.press('#key', 'Tab');
  await modelsListed(page);
  assert.ok(await page.isHidden('#notice'));
  await page.click('#close-settings');
  await refused.locator('text=Try again').click();
  await expect(page, () => document.querySelector('.assistant:not(.open) > .text')?.innerText.length > 0);
  const answer = await answered(page);
  assert.ok((await textOf(answer)).length > 0);

  const kept = await page.evaluate(() => [JSON.stringify({ ...localStorage }), JSON.stringify({ ...sessionStorage }), document.cookie]);
  assert.ok(!kept[0].includes(KEY) && kept[1].includes(KEY) && kept[2] === '', kept.join('\n'));
  await answer.locator('[aria-label="Copy request as curl"]').click();
  await expect(page, () => document.getElementById('toast').innerText === 'curl command copied');
  const command = await clipboard(page);
  assert.ok(!command.includes(KEY), 'the key is not written down');
  assert.match(await bash(command, { PERILUNE_API_KEY: KEY }), /data: \[DONE\]\s*$/);
  assert.match(await bash(command, { PERILUNE_API_KEY: '' }), /invalid_api_key/);

  await page.reload();
  await modelsListed(page);
  assert.ok(mistakes.every((mistake) => mistake.includes('401')), mistakes.join('\n'));
  await close();
});

test('by keyboard alone', async () => {
  const { page, mistakes, close } = await openPage(browser, open.url);
  await modelsListed(page);
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.getAttribute('aria-label') || document.activeElement.tagName);
  const keys = page.keyboard;
  assert.equal(await focused(), 'prompt');
  await keys.type('What is');
  await keys.press('Shift+Enter');
  await keys.type('3 + 4?');
  assert.equal(await page.inputValue('#prompt'), 'What is\n3 + 4?');
  assert.equal(await page.locator('.message').count(), 0);
  await keys.press('Enter');
  await answered(page);
  assert.equal(await focused(), 'prompt');

  // Backwards through everything there is, with a mark on each that shows where one is.
  const seen = [];
  while (!seen.includes('model')) {
    await keys.press('Shift+Tab');
    seen.push(await focused());
    assert.ok(seen.length < 30, seen.join());
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.notEqual(outline, 'none', `no focus mark on ${seen.at(-1)}`);
  }
  for (const stop of ['Copy answer', 'Copy request as curl', 'Regenerate', 'Edit', 'open-settings', 'export', 'new']) assert.ok(seen.includes(stop), `${stop} in ${seen.join()}`);

  await page.focus('#open-settings');
  await keys.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement.name), 'system');
  assert.equal(await page.getAttribute('#open-settings', 'aria-expanded'), 'true');
  await keys.press('Escape');
  assert.ok(await page.isHidden('#settings'));
  assert.equal(await focused(), 'open-settings');

  await page.focus('#prompt');
  await keys.press('ArrowUp');
  assert.equal(await page.inputValue('#prompt'), 'What is\n3 + 4?');
  assert.equal(await page.locator('.message').count(), 0);
  await keys.press('Enter');
  await answered(page);
  await page.focus('.assistant [aria-label=Regenerate]');
  await keys.press('Space');
  await answered(page);
  assert.deepEqual(mistakes, []);
  await close();
});

const WIDE = `${'wide'.repeat(80)}\n\n| ${'column | '.repeat(20)}\n|${'---|'.repeat(20)}\n| ${'x | '.repeat(20)}\n\n\`\`\`\n${'code '.repeat(80)}\n\`\`\`\n\n- https://example.org/${'path/'.repeat(50)}`;

/** Everything that a conversation can show, one after the other; `look` is called with each. */
async function everything(page, look) {
  await modelsListed(page);
  await look('welcome');
  await page.setInputFiles('#files', [`${ROOT}/docs/scene.png`, `${ROOT}/docs/scene.png`]);
  await expect(page, () => document.querySelectorAll('#thumbs img').length === 2);
  await look('attached');
  await answerWith(page, [{ reasoning: WIDE }, { content: WIDE }, { tool_calls: [{ index: 0, id: 'a', function: { name: 'f'.repeat(100), arguments: `{"x": "${'y'.repeat(300)}"}` } }] }]);
  const answer = await ask(page, 'word'.repeat(100));
  await answer.locator('details.reasoning summary').click();
  await answer.locator('.numbers summary').click();
  await look('answer');
  await page.unroute('**/v1/chat/completions');
  await page.route('**/v1/chat/completions', (route) => route.fulfill({ status: 400, contentType: 'application/json', body: JSON.stringify({ error: { message: 'x'.repeat(300) } }) }));
  await ask(page, 'More', 2);
  await look('error');
  await page.click('#open-settings');
  await look('settings');
}

test('a width of 360 pixels is enough', async () => {
  const { page, close } = await openPage(browser, open.url, { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true });
  await everything(page, async (what) => {
    const wide = await page.evaluate(() => {
      const inside = (node) => node.closest('pre, .table, select, .unseen, svg, [hidden]');
      const out = [...document.querySelectorAll('body *')].filter((node) => !inside(node) && node.getBoundingClientRect().right > innerWidth + 0.5);
      const scroll = document.getElementById('scroll');
      return { window: document.documentElement.scrollWidth - innerWidth, scroll: scroll.scrollWidth - scroll.clientWidth, inner: innerWidth, out: out.map((node) => node.outerHTML.slice(0, 80)) };
    });
    assert.deepEqual(wide, { window: 0, scroll: 0, inner: 360, out: [] }, what);
  });
  await close();
});

for (const colorScheme of ['light', 'dark']) {
  test(`nothing that axe finds wrong: ${colorScheme}`, async () => {
    const { page, close } = await openPage(browser, open.url, { colorScheme });
    await everything(page, async (what) => {
      await page.evaluate(AXE);
      const { violations } = await page.evaluate(() => axe.run());
      assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(' ')}`), [], what);
    });
    await close();
  });
}
