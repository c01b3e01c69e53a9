// openai (npm), unmodified.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';
import { zodFunction, zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';

const model = 'perilune-demo';
const messages = [{ role: 'user', content: 'Hello!' }];
const settings = { apiKey: 'none', baseURL: `${process.env.CLIENTS_URL}/v1`, maxRetries: 0 };
const client = new OpenAI(settings);
const keyed = (apiKey) => new OpenAI({ ...settings, apiKey, baseURL: `${process.env.CLIENTS_KEYED_URL}/v1` });
const City = z.object({ city: z.enum(['Paris', 'Oslo']) });

test('chat, whole and streamed, say the same', async () => {
  const whole = await client.chat.completions.create({ model, messages, temperature: 0 });
  assert.equal(whole.choices[0].finish_reason, 'stop');
  let text = '';
  for await (const chunk of await client.chat.completions.create({ model, messages, temperature: 0, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? '';
  }
  assert.equal(text, whole.choices[0].message.content);
});

test('stream helper', async () => {
  const stream = client.chat.completions.stream({ model, messages, stream_options: { include_usage: true } });
  let text = '';
  stream.on('content', (delta) => (text += delta));
  assert.equal(await stream.finalContent(), text);
  assert.ok((await stream.totalUsage()).total_tokens > 0);
});

test('parse with zod', async () => {
  const response_format = zodResponseFormat(City, 'city');
  const answer = await client.chat.completions.parse({ model, messages, response_format });
  assert.ok(City.safeParse(answer.choices[0].message.parsed).success);
});

test('tools, whole and streamed', async () => {
  const tools = [zodFunction({ name: 'weather', parameters: City })];
  const body = { model, messages, tools, tool_choice: 'required', parallel_tool_calls: false };
  const answer = await client.chat.completions.parse(body);
  assert.ok(City.safeParse(answer.choices[0].message.tool_calls[0].function.parsed_arguments).success);
  const final = await client.chat.completions.stream(body).finalChatCompletion();
  assert.ok(City.safeParse(final.choices[0].message.tool_calls[0].function.parsed_arguments).success);
});

test('runTools calls the function and gives its result back', async () => {
  const asked = [];
  const weather = { ...zodFunction({ name: 'weather', parameters: City }), type: 'function' };
  weather.function = {
    ...weather.function,
    parse: JSON.parse,
    function: (input) => (asked.push(input), 'Rain'),
  };
  const runner = client.chat.completions.runTools(
    { model, messages, tools: [weather], tool_choice: { type: 'function', function: { name: 'weather' } } },
    { maxChatCompletions: 1 },
  );
  await runner.done();
  assert.ok(asked.length > 0 && asked.every((input) => City.safeParse(input).success));
});

test('embeddings in base64, its default', async () => {
  const packed = await client.embeddings.create({ model, input: 'ping' });
  const plain = await client.embeddings.create({ model, input: 'ping', encoding_format: 'float' });
  packed.data[0].embedding.forEach((x, i) => assert.ok(Math.abs(x - plain.data[0].embedding[i]) < 1e-5));
});

test('models', async () => {
  const ids = [];
  for await (const one of client.models.list()) ids.push(one.id);
  assert.ok(ids.includes(model));
});

test('errors', async () => {
  await assert.rejects(client.chat.completions.create({ model, messages, top_p: 7 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, 'top_p');
    return true;
  });
  await assert.rejects(client.chat.completions.create({ model: 'other', messages }), OpenAI.NotFoundError);
  await assert.rejects(keyed('wrong').models.list(), OpenAI.AuthenticationError);
  await keyed(process.env.CLIENTS_KEY).models.list();
});

test('a request id, and a stream that is given up', async () => {
  const { response, request_id } = await client.models.list().withResponse();
  assert.equal(response.headers.get('x-request-id'), request_id);
  const stream = await client.chat.completions.create({ model, messages, stream: true, max_tokens: 400 });
  for await (const _ of stream) break;
  assert.ok((await client.chat.completions.create({ model, messages, max_tokens: 1 })).choices.length);
});

test('responses, whole, streamed, kept and gone on with', async () => {
  const body = { model, input: 'Hello!', temperature: 0, max_output_tokens: 32 };
  const whole = await client.responses.create(body);
  assert.equal((await client.responses.retrieve(whole.id)).output_text, whole.output_text);
  let text = '';
  let last;
  for await (const event of await client.responses.create({ ...body, stream: true })) {
    if (event.type === 'response.output_text.delta') text += event.delta;
    last = event;
  }
  assert.equal(text, whole.output_text);
  assert.equal(last.response.status, whole.status);
  const next = await client.responses.create({ ...body, input: 'And?', previous_response_id: whole.id });
  const items = [];
  for await (const item of client.responses.inputItems.list(next.id, { order: 'asc' })) items.push(item.type);
  assert.deepEqual(items, ['message', 'message', 'message']);
  await client.responses.delete(whole.id);
  await assert.rejects(client.responses.retrieve(whole.id), OpenAI.NotFoundError);
});

test('responses: stream helper and parse with zod', async () => {
  const stream = client.responses.stream({ model, input: 'Hello!' });
  let text = '';
  stream.on('response.output_text.delta', (event) => (text += event.delta));
  assert.equal((await stream.finalResponse()).output_text, text);
  const answer = await client.responses.parse({ model, input: 'Hello!', text: { format: zodTextFormat(City, 'city') } });
  assert.ok(City.safeParse(answer.output_parsed).success);
});

test('responses in the background', async () => {
  const begun = await client.responses.create({ model, input: 'Hello!', background: true });
  assert.equal(begun.status, 'queued');
  assert.ok(['cancelled', 'completed'].includes((await client.responses.cancel(begun.id)).status));
});
