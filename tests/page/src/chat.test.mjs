// A conversation with the built-in model: text, pictures, what can be done with an answer, what is kept.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { answered, ask, bash, clipboard, expect, launch, modelsListed, openPage, requestsOf, set, textOf } from './browser.mjs';
import { ROOT, startServer } from './server.mjs';

const SCENE = `${ROOT}/docs/scene.png`;
const SCENE_ANSWER = 'A small red star at the top left, a small red triangle at the top right, a large purple star at the bottom left and a small blue circle at the bottom right, on an orange background.';

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

/** What the server itself says, without a page and in one piece. */
async function reference(request) {
  const response = await fetch(`${server.url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...request, stream: false, stream_options: null }),
  });
  return (await response.json()).choices[0].message.content;
}

test('models are listed, a question is answered, and nothing is fetched from elsewhere', async () => {
  const { page, mistakes, close } = await openPage(browser, server.url);
  const requests = requestsOf(page);
  await modelsListed(page);
  const { data } = await (await fetch(`${server.url}/v1/models`)).json();
  assert.deepEqual(await page.locator('#model option').allInnerTexts(), data.map(({ id }) => id));
  await set(page, { temperature: '0' });
  const answer = await ask(page, 'What is 3 + 4?');
  assert.match(await textOf(answer), /7/);
  assert.equal(await textOf(answer), await reference(requests[0]));
  assert.match(await answer.locator('.numbers summary').innerText(), /^\d+\stokens? · .*first\stoken\s/);
  await answer.locator('.numbers summary').click();
  const rows = await answer.locator('dl').innerText();
  for (const row of ['Queue', 'Prefill', 'Decode', 'Prompt tokens', '… cached', 'Ended by\nstop', 'Request']) assert.ok(rows.includes(row), rows);
  assert.deepEqual(mistakes, []);
  await close();
});

test('pictures: chosen, pasted and dropped', async () => {
  const { page, mistakes, close } = await openPage(browser, server.url);
  const requests = requestsOf(page);
  await modelsListed(page);
  await set(page, { temperature: '0' });
  const [chooser] = await Promise.all([page.waitForEvent('filechooser'), page.click('#attach')]);
  await chooser.setFiles([SCENE, SCENE]);
  await expect(page, () => document.querySelectorAll('#thumbs img').length === 2);
  await page.locator('#thumbs button').first().click();
  assert.equal(await page.locator('#thumbs img').count(), 1);
  assert.equal(await textOf(await ask(page, 'Describe the picture.')), SCENE_ANSWER);
  const [picture, text] = requests[0].messages[0].content;
  const scene = (await readFile(SCENE)).toString('base64');
  assert.equal(picture.image_url.url, `data:image/png;base64,${scene}`, 'the file is sent as it is');
  assert.equal(text.text, 'Describe the picture.');
  for (const [count, kind, target] of [[2, 'paste', '#prompt'], [3, 'drop', 'body']]) {
    await page.click('#new');
    await page.evaluate(([scene, kind, target]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(atob(scene), (c) => c.charCodeAt(0))], 'scene.png', { type: 'image/png' }));
      const event = kind === 'paste'
        ? new ClipboardEvent(kind, { clipboardData: transfer, bubbles: true, cancelable: true })
        : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
      document.querySelector(target).dispatchEvent(event);
    }, [scene, kind, target]);
    await expect(page, () => document.querySelectorAll('#thumbs img').length === 1);
    assert.equal(await textOf(await ask(page, 'Describe the picture.')), SCENE_ANSWER, `${kind} ${count}`);
  }
  assert.deepEqual(mistakes, []);
  await close();
});

test('what is no picture is said so; the sample is described', async () => {
  const { page, mistakes, close } = await openPage(browser, server.url);
  await modelsListed(page);
  await set(page, { temperature: '0' });
  await page.setInputFiles('#files', { name: 'notes.txt', mimeType: 'text/plain', buffer: Buffer.from('no picture') });
  await expect(page, () => document.getElementById('toast').innerText.includes('notes.txt is not a picture'));
  await page.locator('#ideas button', { hasText: 'Describe' }).click();
  const text = await textOf(await answered(page));
  assert.match(text, /blue circle at the top left/);
  assert.match(text, /orange star at the bottom right/);
  assert.deepEqual(mistakes, []);
  await close();
});

test('pictures that are too large together are made smaller, and only they', async () => {
  const { page, mistakes, close } = await openPage(browser, server.url);
  const lengths = await page.evaluate(async () => {
    const { readPictures, BODY_LEN_MAX } = await import('/page/pictures.js');
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [700, 500];
    const context = canvas.getContext('2d');
    const noise = context.createImageData(700, 500);
    for (let at = 0; at < noise.data.length; at += 65536) crypto.getRandomValues(noise.data.subarray(at, at + 65536));
    context.putImageData(noise, 0, 0);
    const file = new File([await new Promise((resolve) => canvas.toBlob(resolve))], 'noise.png', { type: 'image/png' });
    const read = async (room) => (await readPictures([file], BODY_LEN_MAX - (1 << 20) - room))[0].url;
    const asItIs = (await read(1 << 24)).length;
    const smaller = await read(200_000);
    const none = await read(1000).catch((error) => error.message);
    return { file: file.size, asItIs, smaller: smaller.length, type: smaller.slice(0, 16), none };
  });
  assert.equal(lengths.asItIs, 'data:image/png;base64,'.length + Math.ceil(lengths.file / 3) * 4);
  assert.ok(lengths.smaller <= 200_000 && lengths.smaller > 60_000, String(lengths.smaller));
  assert.equal(lengths.type, 'data:image/jpeg;');
  assert.match(lengths.none, /no room left for noise.png: a request may have 32 MiB/);
  assert.deepEqual(mistakes, []);
  await close();
});

test('the copied curl command runs, whatever is in the message', async () => {
  const { page, mistakes, close } = await openPage(browser, server.url);
  await modelsListed(page);
  await set(page, { temperature: '0', system: 'It\'s a "test"' });
  await page.setInputFiles('#files', SCENE);
  await expect(page, () => document.querySelectorAll('#thumbs img').length === 1);
  const nasty = 'It\'s "quoted" $HOME `date` $(id) \\ \\n !! %s\nEND\n\'END\' 🌒';
  const answer = await ask(page, nasty);
  await answer.locator('[aria-label="Copy request as curl"]').click();
  await expect(page, () => document.getElementById('toast').innerText === 'curl command copied');
  const stdout = await bash(await clipboard(page));
  assert.ok(stdout.trimEnd().endsWith('data: [DONE]'), stdout);
  const chunks = stdout.split('\n').filter((line) => line.startsWith('data: {')).map((line) => JSON.parse(line.slice(6)));
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content || '').join('');
  assert.equal(text.trim(), (await textOf(answer)).trim());
  assert.ok((await clipboard(page)).includes(JSON.stringify(nasty)));
  assert.deepEqual(mistakes, []);
  await close();
});

test('settings reach the request, and wrong ones are shown instead of sent', async () => {
  const { page, mistakes, close } = await openPage(browser, server.url);
  const requests = requestsOf(page);
  await modelsListed(page);
  await set(page, { system: 'Be brief.', temperature: '0.5', top_p: '0.9', top_k: '5', min_p: '0.1', max_tokens: '3', seed: '7', repetition_penalty: '1.1', frequency_penalty: '0.2', presence_penalty: '-0.2', stop: 'one\ntwo words', more: '{"user": "me"}' });
  const answer = await ask(page, 'Hello');
  const { messages, stream, model, stream_options, timings, ...rest } = requests[0];
  assert.deepEqual(messages, [{ role: 'system', content: 'Be brief.' }, { role: 'user', content: 'Hello' }]);
  assert.deepEqual(rest, { temperature: 0.5, max_tokens: 3, top_p: 0.9, top_k: 5, min_p: 0.1, seed: 7, frequency_penalty: 0.2, presence_penalty: -0.2, repetition_penalty: 1.1, stop: ['one', 'two words'], user: 'me' });
  await answer.locator('.numbers summary').click();
  assert.match(await answer.locator('dl').innerText(), /Ignored fields\nuser/);
  for (const [name, value] of [['more', '[1]'], ['more', '{'], ['top_p', '2']]) {
    await set(page, { more: '', top_p: '', [name]: value });
    await page.fill('#prompt', 'Again');
    await page.press('#prompt', 'Enter');
    await expect(page, ([name]) => document.activeElement.name === name, name);
    assert.equal(await page.inputValue('#prompt'), 'Again');
    await page.click('#close-settings');
  }
  await page.reload();
  assert.equal(await page.inputValue('[name=system]'), 'Be brief.');
  await page.click('#open-settings');
  await page.click('#reset');
  assert.equal(await page.inputValue('[name=system]'), '');
  assert.equal(requests.length, 1);
  assert.deepEqual(mistakes, []);
  await close();
});

test('regenerate, edit, clear, undo, reload, export', async () => {
  const { page, mistakes, close } = await openPage(browser, server.url);
  const requests = requestsOf(page);
  await modelsListed(page);
  await set(page, { temperature: '0' });
  await ask(page, 'Hello!');
  const second = await ask(page, 'What is 2 + 2?', 2);
  const text = await textOf(second);
  const replaced = await second.elementHandle();
  await second.locator('[aria-label=Regenerate]').click();
  await expect(page, ([before]) => document.querySelectorAll('.assistant:not(.open)').length === 2 && [...document.querySelectorAll('.assistant')].at(-1) !== before, replaced);
  assert.equal(await textOf(await answered(page, 2)), text);
  assert.deepEqual(requests[2], requests[1]);
  assert.equal(requests[1].messages.length, 3);

  await page.locator('.user').last().locator('[aria-label=Edit]').click();
  assert.equal(await page.inputValue('#prompt'), 'What is 2 + 2?');
  assert.equal(await page.locator('.message').count(), 2);
  await ask(page, 'What is 5 + 3?', 2);
  assert.equal(requests[3].messages.at(-1).content, 'What is 5 + 3?');

  await page.reload();
  assert.equal(await page.locator('.message').count(), 4);
  await modelsListed(page);
  const [download] = await Promise.all([page.waitForEvent('download'), page.click('#export')]);
  const exported = JSON.parse(await readFile(await download.path(), 'utf8'));
  assert.deepEqual(exported.messages.map(({ role }) => role), ['user', 'assistant', 'user', 'assistant']);
  assert.equal(exported.settings.fields.temperature, 0);
  assert.ok(exported.details[3].usage.completion_tokens > 0);
  await page.locator('.assistant').last().locator('[aria-label="Copy request as curl"]').click();
  await expect(page, () => document.getElementById('toast').innerText === 'curl command copied');
  assert.ok((await clipboard(page)).includes('What is 5 + 3?'), 'also after a reload');

  // What can be undone can be for eight seconds, which a busy machine may need to find the button.
  await page.evaluate(() => { window.setTimeout = () => 0; });
  await page.click('#new');
  assert.equal(await page.locator('.message').count(), 0);
  assert.ok(await page.isVisible('#welcome'));
  await page.locator('#toast button').click();
  assert.equal(await page.locator('.message').count(), 4);
  assert.deepEqual(mistakes, []);
  await close();
});
