// The AI SDK with its provider for OpenAI-compatible servers, unmodified.

import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { embed, generateObject, generateText, streamText, tool } from 'ai';
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { z } from 'zod';

const provider = createOpenAICompatible({
  name: 'perilune',
  baseURL: `${process.env.CLIENTS_URL}/v1`,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider('perilune-demo');
const prompt = 'Hello!';
const City = z.object({ city: z.enum(['Paris', 'Oslo']) });
const weather = tool({ description: 'Weather of a city', inputSchema: City, execute: async () => 'Rain' });

test('generateText and streamText say the same', async () => {
  const whole = await generateText({ model, prompt, temperature: 0, maxRetries: 0 });
  assert.ok(whole.text);
  assert.equal(whole.finishReason, 'stop');
  assert.ok(whole.usage.totalTokens > 0);
  const streamed = streamText({ model, prompt, temperature: 0, maxRetries: 0 });
  let text = '';
  for await (const part of streamed.textStream) text += part;
  assert.equal(text, whole.text);
  assert.equal((await streamed.usage).outputTokens, whole.usage.outputTokens);
});

test('generateObject', async () => {
  const { object } = await generateObject({ model, prompt, schema: City, maxRetries: 0 });
  assert.ok(City.safeParse(object).success);
});

test('tools, whole and streamed', async () => {
  const request = { model, prompt, tools: { weather }, toolChoice: 'required', maxRetries: 0 };
  const whole = await generateText(request);
  assert.ok(whole.toolCalls.length > 0 && whole.toolCalls.every((call) => City.safeParse(call.input).success));
  assert.equal(whole.toolResults[0].output, 'Rain');
  const calls = await streamText(request).toolCalls;
  assert.ok(calls.length > 0 && calls.every((call) => City.safeParse(call.input).success));
});

test('embed', async () => {
  const { embedding } = await embed({ model: provider.embeddingModel('perilune-demo'), value: 'ping' });
  assert.ok(embedding.length > 1);
});

test('an error carries its status and field', async () => {
  await assert.rejects(generateText({ model, prompt, topP: 7, maxRetries: 0 }), (error) => {
    assert.equal(error.statusCode, 400);
    assert.equal(error.data.error.param, 'top_p');
    return true;
  });
});
