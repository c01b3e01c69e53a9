// Writes the picture that README shows: a picture is described by the built-in model.

import { ask, expect, launch, modelsListed, openPage, set } from './browser.mjs';
import { ROOT, startServer } from './server.mjs';

const server = await startServer();
const browser = await launch();
try {
  const { page } = await openPage(browser, server.url, { viewport: { width: 1120, height: 700 }, colorScheme: 'light' });
  await modelsListed(page);
  await set(page, { temperature: '0' });
  await page.setInputFiles('#files', `${ROOT}/docs/scene.png`);
  await expect(page, () => document.querySelectorAll('#thumbs img').length === 1);
  await ask(page, 'Describe the picture.');
  await page.evaluate(() => { document.getElementById('scroll').scrollTop = 0; });
  await page.screenshot({ path: process.argv[2] });
} finally {
  await browser.close();
  await server.stop();
}
