// What the built-in model cannot be asked to say, said by stand-in streams: reasoning, tool calls, markup, attacks and failures.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { answerWith, ask, expect, launch, modelsListed, openPage, requestsOf, textOf } from './browser.mjs';
import { startServer } from './server.mjs';

let server;
let browser;

before(async () => {
  server = await startServer();
  browser = await launch();
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

for (const field of ['reasoning_content', 'reasoning']) {
  test(`reasoning is folded: ${field}`, async () => {
    const { page, mistakes, close } = await openPage(browser, server.url);
    await answerWith(page, [{ role: 'assistant', content: '' }, { [field]: 'First, ' }, { [field]: 'I **think**.' }, { content: 'It is 7.' }]);
    const answer = await ask(page, 'Why?');
    const thoughts = answer.locator('details.reasoning');
    assert.equal(await thoughts.evaluate((node) => node.open), false);
    assert.ok(await thoughts.locator('.text').isHidden());
    assert.equal(await textOf(answer), 'It is 7.');
    await thoughts.locator('summary').click();
    assert.equal(await thoughts.locator('.text').innerText(), 'First, I think.');
    assert.match(await answer.locator('.numbers summary').innerText(), /^21\stokens · 200\stok\/s/);
    assert.deepEqual(mistakes, []);
    await close();
  });
}

test('both names of reasoning at once are one', async () => {
  const { page, close } = await openPage(browser, server.url);
  await answerWith(page, [{ reasoning: 'once', reasoning_content: 'once' }, { content: 'x' }]);
  const answer = await ask(page, 'Why?');
  assert.equal(await answer.locator('details.reasoning .text').textContent(), 'once');
  await close();
});

test('tool calls are shown, and their results are sent', async () => {
  const { page, mistakes, close } = await openPage(browser, server.url);
  const requests = requestsOf(page);
  const call = (index, id, name, text) => ({ tool_calls: [{ index, id, type: 'function', function: { name, arguments: text } }] });
  const more = (index, text) => ({ tool_calls: [{ index, function: { arguments: text } }] });
  await answerWith(page, [{ role: 'assistant' }, call(0, 'a', 'weather', '{"city": '), more(0, '"Rome"}'), call(1, 'b', 'clock', '{}')], { finish: 'tool_calls' });
  const answer = await ask(page, 'Weather and time in Rome?');
  assert.deepEqual(await answer.locator('.call-name').allTextContents(), ['Calls weather', 'Calls clock']);
  assert.equal(await answer.locator('.call pre').first().innerText(), '{\n  "city": "Rome"\n}');
  await page.unroute('**/v1/chat/completions');
  await answerWith(page, [{ content: 'Sunny at noon.' }]);
  await answer.locator('textarea').nth(0).fill('sunny');
  await answer.locator('textarea').nth(1).fill('12:00');
  await answer.locator('text=Send results').click();
  await expect(page, () => document.querySelectorAll('.assistant:not(.open)').length === 2);
  assert.deepEqual(requests[1].messages.slice(1), [
    { role: 'assistant', content: '', tool_calls: [
      { id: 'a', type: 'function', function: { name: 'weather', arguments: '{"city": "Rome"}' } },
      { id: 'b', type: 'function', function: { name: 'clock', arguments: '{}' } }] },
    { role: 'tool', tool_call_id: 'a', content: 'sunny' },
    { role: 'tool', tool_call_id: 'b', content: '12:00' },
  ]);
  assert.ok(await answer.locator('.results').isHidden());
  assert.deepEqual(mistakes, []);
  await close();
});

test('markup of a model is text, and its links lead to the web only', async () => {
  const { page, mistakes, close } = await openPage(browser, server.url);
  const attacks = [
    '<img src=x onerror="window.hacked=1">', '<script>window.hacked=1</script>', '[a](javascript:window.hacked=1)', '[b](data:text/html,x)',
    '[c](JaVaScRiPt:alert(1))', '![d](https://example.org/d.png)', '<svg onload=window.hacked=1>', '[e](https://example.org/"onmouseover="window.hacked=1)',
  ];
  const text = `${attacks.join('\n\n')}\n\n\`\`\`html\n<b onclick=1>\n\`\`\`\n\n| <i>x</i> |\n|---|\n| <u>y</u> |`;
  await answerWith(page, [{ reasoning: text }, { content: text }, { tool_calls: [{ index: 0, id: '', function: { name: '<b>n</b>', arguments: '<i>a</i>' } }] }]);
  const answer = await ask(page, '<b>me</b>');
  await answer.locator('details.reasoning summary').click();
  const found = await page.evaluate(() => ({
    hacked: window.hacked,
    tags: [...new Set([...document.querySelectorAll('#log .text *, #log .calls *, #log .bubble *')].map((node) => node.tagName.toLowerCase()))].sort(),
    links: [...document.querySelectorAll('#log a')].map(({ href, rel, target }) => [href, rel, target].join(' ')),
    handlers: [...document.querySelectorAll('#log *')].flatMap((node) => node.getAttributeNames()).filter((name) => name.startsWith('on')),
  }));
  assert.equal(found.hacked, undefined);
  assert.deepEqual(found.handlers, []);
  for (const tag of ['img', 'script', 'i', 'u', 'b']) assert.ok(!found.tags.includes(tag), found.tags.join());
  assert.ok(found.links.length > 0 && found.links.every((link) => /^https:\/\/example\.org\/\S* noopener noreferrer _blank$/.test(link)), found.links.join('\n'));
  const shown = await textOf(answer);
  for (const attack of attacks.slice(0, 5)) assert.ok(shown.includes(attack), `${attack} in ${shown}`);
  assert.equal(await page.locator('.bubble').innerText(), '<b>me</b>');
  assert.deepEqual(mistakes, []);
  await close();
});

const MARKDOWN = [
  ['# Head\ntext', '<h3>Head</h3><p>text</p>'],
  ['a **b** *c* `d*e*` __f__ ~~g~~ snake_case_name 2*3*4 \\*h\\*', '<p>a <strong>b</strong> <em>c</em> <code>d*e*</code> <strong>f</strong> <del>g</del> snake_case_name 2<em>3</em>4 *h*</p>'],
  ['- a\n- b\n  1. c\n  2. d\n- e', '<ul><li>a</li><li>b<ol><li>c</li><li>d</li></ol></li><li>e</li></ul>'],
  ['3. a\n4. b', '<ol start="3"><li>a</li><li>b</li></ol>'],
  ['> q\n> r\n\np', '<blockquote><p>q\nr</p></blockquote><p>p</p>'],
  ['---\n***', '<hr><hr>'],
  ['| a | b |\n|---|:-:|\n| `x` | y \\| z |', '<div class="table" tabindex="0"><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td><code>x</code></td><td>y | z</td></tr></tbody></table></div>'],
  ['see https://a.example/x_(y)_z.', '<p>see <a href="https://a.example/x_(y" target="_blank" rel="noopener noreferrer">https://a.example/x_(y</a>)_z.</p>'],
  ['**open `open [open](', '<p>**open `open [open](</p>'],
  ['', ''],
];

test('the subset of Markdown, whole and as it grows', async () => {
  const { page, mistakes, close } = await openPage(browser, server.url);
  for (const [source, expected] of MARKDOWN) {
    const got = await page.evaluate(async (source) => {
      const { showMarkdown } = await import('/page/markdown.js');
      const [whole, growing] = [document.createElement('div'), document.createElement('div')];
      showMarkdown(whole, source);
      for (let end = 0; end <= source.length; end += 1) showMarkdown(growing, source.slice(0, end));
      return [whole.innerHTML, growing.innerHTML];
    }, source);
    assert.deepEqual(got, [expected, expected], source);
  }
  // Code keeps its text to the letter, closed or not, and is copied so.
  const code = '  if a < b:\n\n      print("*x*")';
  for (const source of [`\`\`\`python\n${code}\n\`\`\``, `\`\`\`python\n${code}`, `~~~\n${code}\n~~~`]) {
    await page.unroute('**/v1/chat/completions');
    await answerWith(page, [{ content: source }]);
    if (await page.isEnabled('#new')) await page.click('#new');
    const answer = await ask(page, 'Code?');
    assert.equal(await answer.locator('pre code').textContent(), code);
    await answer.locator('figure button').click();
    await expect(page, () => document.getElementById('toast').innerText === 'Code copied');
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), code);
  }
  const ms = await page.evaluate(async () => {
    const { showMarkdown } = await import('/page/markdown.js');
    const node = document.createElement('div');
    const begin = performance.now();
    for (const part of ['*', '_', '`', '[', '**a', '[a](', '~~', '> ', '|', '- ', '# ', '*_']) {
      for (const count of [1000, 20000]) showMarkdown(node, part.repeat(count));
    }
    showMarkdown(node, Array.from({ length: 2000 }, (_, i) => `${' '.repeat(2 * i)}- x`).join('\n'));
    return performance.now() - begin;
  });
  // Some tenths of a second; a machine that is busy with something else may take much longer.
  assert.ok(ms < 60_000, `hostile text took ${ms} ms`);
  assert.deepEqual(mistakes, []);
  await close();
});

test('failures are shown, and can be tried again', async () => {
  const { page, close } = await openPage(browser, server.url);
  await modelsListed(page);
  const cases = [
    [{ status: 429, contentType: 'application/json', body: '{"error": {"message": "the queue is full", "code": "rate_limit_exceeded"}}' }, /the queue is full\s+status 429 · rate_limit_exceeded/i],
    [{ status: 400, contentType: 'application/json', body: '{"error": {"message": "no such thing", "param": "top_k"}}' }, /no such thing\s+status 400 · field top_k/i],
    [{ status: 502, contentType: 'text/html', body: '<b>Bad gateway</b>' }, /the server answered with status 502/i],
    [{ contentType: 'text/event-stream', body: 'data: {"choices": [{"index": 0, "delta": {"content": "Half"}}]}\n\n' }, /the stream broke off before its end/i],
    [{ contentType: 'text/event-stream', body: 'data: {"choices": [{"index": 0, "delta": {"content": "Half"}}]}\n\ndata: {"error": {"message": "the engine failed"}}\n\ndata: [DONE]\n\n' }, /the engine failed/i],
    [{ contentType: 'text/event-stream', body: 'data: {oops\n\n' }, /an event that is not JSON: \{oops/i],
    ['abort', /the server cannot be reached/i],
  ];
  for (const [reply, expected] of cases) {
    await page.route('**/v1/chat/completions', (route) => (reply === 'abort' ? route.abort() : route.fulfill(reply)));
    const answer = await ask(page, 'Hello');
    assert.match(await answer.locator('.error').innerText(), expected);
    if (reply.body?.includes('Half')) assert.equal(await textOf(answer), 'Half');
    await page.unroute('**/v1/chat/completions');
    await answer.locator('text=Try again').click();
    await expect(page, () => document.querySelectorAll('.assistant:not(.open)').length === 1 && document.querySelector('.error').hidden);
    await page.click('#new');
  }
  await close();
});

test('an answer in one piece', async () => {
  const { page, mistakes, close } = await openPage(browser, server.url);
  await answerWith(page, [], { body: { model: 'm', choices: [{ index: 0, message: { role: 'assistant', content: 'Whole.', reasoning_content: 'Hm.' }, finish_reason: 'length' }], usage: { completion_tokens: 2 } } });
  const answer = await ask(page, 'Hello');
  assert.equal(await textOf(answer), 'Whole.');
  assert.match(await answer.locator('.numbers summary').innerText(), /cut\sat\sthe\stoken\slimit/);
  assert.deepEqual(mistakes, []);
  await close();
});

test('a model that is being loaded, and one that came later', async () => {
  const { page, close } = await openPage(browser, server.url);
  let calls = 0;
  let told;
  const wasTold = new Promise((resolve) => { told = resolve; });
  await page.route('**/v1/models', async (route) => {
    calls += 1;
    // The model comes when the page was seen to wait for it.
    if (calls > 1) return wasTold.then(() => route.continue());
    return route.fulfill({ status: 503, headers: { 'retry-after': '1' }, contentType: 'application/json', body: '{"error": {"message": "the model is being loaded"}}' });
  });
  await page.reload();
  await expect(page, () => document.getElementById('notice').innerText === 'The model is being loaded…');
  told();
  await modelsListed(page);
  assert.ok(await page.isHidden('#notice'));
  await close();
});
