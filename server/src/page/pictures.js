// Pictures on their way into a request, as data URLs: read as they are where the server knows their format, and redrawn only where it
// does not or where the request would become too large.

/** The server's limit for a request; tests hold the two together. */
export const BODY_LEN_MAX = 33554432;

/** For everything in a request that is not a picture. */
const RESERVE = 1 << 20;

const KNOWN = ['image/png', 'image/jpeg', 'image/webp', 'image/gif', 'image/bmp'];

/** Data URLs of `files`, each with its name and size, within `room` characters together. */
export async function readPictures(files, used) {
  const pictures = [];
  for (const file of files) {
    const room = BODY_LEN_MAX - RESERVE - used - total(pictures);
    pictures.push(await readPicture(file, room));
  }
  return pictures;
}

export const total = (pictures) => pictures.reduce((sum, { url }) => sum + url.length, 0);

async function readPicture(file, room) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) throw new Error(`${file.name || 'this'} is not a picture that this browser can read`);
  const { width, height } = bitmap;
  const picture = { name: file.name || 'pasted picture', width, height, url: '' };
  picture.url = KNOWN.includes(file.type) ? await dataUrl(file) : redraw(bitmap, 1, 'image/png');
  if (picture.url.length > room) picture.url = shrink(bitmap, room);
  if (!picture.url) throw new Error(`there is no room left for ${picture.name}: a request may have ${BODY_LEN_MAX >> 20} MiB`);
  return picture;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** The largest of a few scales that fits; empty where none does. */
function shrink(bitmap, room) {
  for (let scale = 1; bitmap.width * scale >= 64 && bitmap.height * scale >= 64; scale *= 0.7) {
    const url = redraw(bitmap, scale, 'image/jpeg');
    if (url.length <= room) return url;
  }
  return '';
}

function redraw(bitmap, scale, type) {
  const [canvas, context] = newCanvas(Math.max(1, bitmap.width * scale), Math.max(1, bitmap.height * scale));
  if (type === 'image/jpeg') {
    context.fillStyle = 'white';
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL(type, 0.9);
}

function newCanvas(width, height) {
  const canvas = document.createElement('canvas');
  canvas.width = width;
  canvas.height = height;
  return [canvas, canvas.getContext('2d')];
}

/** Something to ask about: a picture of the kind that the built-in model knows. */
export function samplePicture() {
  const size = 224;
  const [canvas, context] = newCanvas(size, size);
  const shape = (color, points) => {
    context.fillStyle = color;
    context.beginPath();
    points.forEach(([x, y]) => context.lineTo(x, y));
    context.fill();
  };
  const around = (x, y, radii, count) => Array.from({ length: count }, (_, i) => {
    const angle = (i / count) * 2 * Math.PI - Math.PI / 2;
    const radius = radii[i % radii.length];
    return [x + radius * Math.cos(angle), y + radius * Math.sin(angle)];
  });
  shape('#ffffff', [[0, 0], [size, 0], [size, size], [0, size]]);
  shape('#1e6eeb', around(62, 60, [38], 64));
  shape('#ffa500', around(162, 160, [44, 18], 10));
  return { name: 'sample picture', width: size, height: size, url: canvas.toDataURL('image/png') };
}
