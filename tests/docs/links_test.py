"""Links of the documentation resolve; its figures are legible on any ground."""

import collections
import pathlib
import re
import tempfile
from urllib import parse
from xml.etree import ElementTree

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from tests import doc_pages

_ROOT = doc_pages.ROOT
_PAGES = doc_pages.pages() + sorted((_ROOT / 'results').rglob('*.md'))
_CONTRAST = 4.5  # of text to its ground, WCAG 2.1, level AA


def link_fault(page: pathlib.Path, link: doc_pages.Link) -> str:
  """What is wrong with a link of a page; '' if nothing is."""
  if not link.target:
    return 'has no target'
  url = parse.urlsplit(link.target)
  if url.scheme or url.netloc:
    return _external_fault(url)
  path = parse.unquote(url.path)
  if path.startswith('/'):
    return 'is absolute: must be relative, to hold in the site and on GitHub'
  target = (page.parent / path).resolve() if path else page
  if not target.is_relative_to(_ROOT) and page.is_relative_to(_ROOT):
    return 'leaves the project'
  if not target.exists():
    return 'does not exist'
  return _anchor_fault(target, parse.unquote(url.fragment))


def _external_fault(url):
  if url.scheme == 'mailto':
    return '' if '@' in url.path else 'is no address'
  if url.scheme not in ('http', 'https'):
    return f'has the scheme {url.scheme!r}'
  if not re.fullmatch(r'([a-z0-9-]+\.)+[a-z]{2,}(:\d+)?', url.netloc):
    return f'has the host {url.netloc!r}'
  if re.search(r'[\s<>"{}|\\^`]|[.,;]$', url.geturl()):
    return 'has characters that no address has'
  return ''


def _anchor_fault(target, fragment):
  if not fragment or target.suffix != '.md':
    return ''
  text = target.read_text(encoding='utf-8')
  # Names of the reference are made of docstrings when the site is built.
  if any(
    f'{fragment}.'.startswith(f'{name}.')
    for name in re.findall(r'^::: *(\S+)', text, re.M)
  ):
    return ''
  count = doc_pages.anchors(text).count(fragment)
  return '' if count == 1 else f'has {count} headings of that name'


def picture_fault(file: pathlib.Path) -> str:
  """Why a figure can't be read on a light and a dark page; '' if it can."""
  if file.suffix == '.svg':
    return _svg_fault(ElementTree.fromstring(file.read_bytes()))
  with Image.open(file) as image:
    found = image.convert('RGBA').getcolors(image.width * image.height)
  counts = np.array([count for count, _ in found])
  colors = np.array([color for _, color in found])
  if np.any(colors[:, 3] < 255):
    return 'is transparent in places: the ground of the page shows'
  light = _luminance(colors[:, :3])
  ground = light[np.argmax(counts)]
  high, low = np.maximum(light, ground), np.minimum(light, ground)
  share = counts[(high + 0.05) / (low + 0.05) >= _CONTRAST].sum() / counts.sum()
  return '' if share > 1e-3 else f'has {share:.2%} of text on its ground'


def _luminance(colors):
  """[n] of sRGB [n, 3] in bytes, relative to white: WCAG 2.1."""
  c = colors / 255
  linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
  return linear @ [0.2126, 0.7152, 0.0722]


def _svg_fault(root):
  """An opaque rectangle that fills the canvas comes before all else."""
  *_, width, height = map(float, root.attrib['viewBox'].split())
  shapes = ('rect', 'path', 'text', 'use', 'image')
  drawn = [
    node
    for group in root
    if not group.tag.endswith('defs')
    for node in group.iter()
    if node.tag.split('}')[-1] in shapes
  ]
  first = drawn[0]
  style = dict(
    item.split(':')
    for item in re.sub(r'\s', '', first.attrib.get('style', '')).split(';')
    if item
  )
  fill = style.get('fill', first.attrib.get('fill', ''))
  opacity = min(
    float(style.get(key, first.attrib.get(key, 1)))
    for key in ('opacity', 'fill-opacity')
  )
  if first.tag.endswith('rect'):
    sides = {first.attrib.get('width'), first.attrib.get('height')}
    is_whole = sides in ({'100%'}, {f'{width:g}', f'{height:g}'})
  else:
    numbers = re.findall(r'-?[\d.]+', first.attrib.get('d', ''))
    points = np.reshape(np.array(numbers, float), (-1, 2))
    is_whole = points.size and np.allclose(
      [points.min(0), points.max(0)], [[0, 0], [width, height]], atol=0.1
    )
  if not is_whole or fill in ('', 'none', 'transparent') or opacity < 1:
    return 'has no opaque ground'
  return ''


def _pictures():
  """Files of all figures that a page shows."""
  found = set()
  for page in _PAGES:
    for link in doc_pages.links(page.read_text(encoding='utf-8')):
      path = parse.urlsplit(link.target).path
      if pathlib.Path(path).suffix in ('.png', '.svg', '.jpg', '.jpeg'):
        found.add((page.parent / parse.unquote(path)).resolve())
  return sorted(found)


class LinksTest(parameterized.TestCase):
  def test_resolve(self):
    faults = collections.defaultdict(list)
    for page in _PAGES:
      for link in doc_pages.links(page.read_text(encoding='utf-8')):
        fault = link_fault(page, link)
        if fault:
          faults[str(page.relative_to(_ROOT))].append((link.target, fault))
    self.assertEqual(dict(faults), {})

  def test_images_have_alternative_text(self):
    for page in _PAGES:
      for link in doc_pages.links(page.read_text(encoding='utf-8')):
        if link.is_image:
          with self.subTest(page=page.name, image=link.target):
            self.assertRegex(link.text, r'\w{3}')
            self.assertNotIn(pathlib.Path(link.target).name, link.text)

  @parameterized.parameters(
    ('there.md', ''),
    ('there.md#a-heading-of-code', ''),
    ('#here', ''),
    ('there.md#twice', 'has 2 headings'),
    ('there.md#none', 'has 0 headings'),
    ('there.md#hmpo_jax.base.Batch', ''),
    ('there.md#hmpo_jax.baseline', 'has 0 headings'),
    ('none.md', 'does not exist'),
    ('/there.md', 'is absolute'),
    ('', 'has no target'),
    ('https://arxiv.org/abs/2507.18071', ''),
    ('https://arxiv/abs', 'has the host'),
    ('htps://a.org', 'has the scheme'),
    ('https://a.org/b.', 'has characters'),
    ('mailto:nobody', 'is no addr'),
  )
  def test_faults_are_named(self, target, fault):
    with tempfile.TemporaryDirectory() as name:
      page = pathlib.Path(name).resolve() / 'page.md'
      page.write_text('# Here\n')
      (page.parent / 'there.md').write_text(
        '# A heading of `code`\n\n## Twice\n\n## Twice\n\n::: hmpo_jax.base\n'
      )
      found = link_fault(page, doc_pages.Link(target, 'text', False))
      self.assertStartsWith(found, fault)
      self.assertEqual(bool(found), bool(fault))

  def test_of_a_page(self):
    text = """[a](b.md "title") ![of c](c.png) [![of d](d.svg)](e.md)
`[code](no.md)` <https://f.org> [g]: not one

[g]: h.md
<img src="i.png" alt="of i">

```
[block](no.md)
```
"""
    found = doc_pages.links(text)
    self.assertEqual(
      {link.target for link in found},
      {'b.md', 'c.png', 'd.svg', 'e.md', 'https://f.org', 'h.md', 'i.png'},
    )
    self.assertEqual(
      {link.text for link in found if link.is_image}, {'of c', 'of d', 'of i'}
    )


_SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 6">{}</svg>'
_DARK_TEXT = '<text x="1" y="2" fill="#000">a</text>'


class PicturesTest(parameterized.TestCase):
  def test_are_legible_in_light_and_dark(self):
    self.assertNotEmpty(_pictures())
    faults = {
      str(file.relative_to(_ROOT)): picture_fault(file) for file in _pictures()
    }
    self.assertEqual({k: fault for k, fault in faults.items() if fault}, {})

  @parameterized.parameters(
    ((255, 255, 255, 255), (0, 0, 0, 255), ''),
    ((20, 20, 20, 255), (255, 255, 0, 255), ''),
    ((255, 255, 255, 0), (0, 0, 0, 255), 'is transparent'),
    ((255, 255, 255, 254), (0, 0, 0, 255), 'is transparent'),
    ((255, 255, 255, 255), (200, 200, 200, 255), 'has 0.00% of text'),
  )
  def test_pixels(self, ground, text, fault):
    with tempfile.TemporaryDirectory() as name:
      file = pathlib.Path(name) / 'x.png'
      image = Image.new('RGBA', (20, 10), ground)
      image.paste(text, (2, 2, 6, 4))
      image.save(file)
      self.assertStartsWith(picture_fault(file), fault)
      self.assertEqual(bool(picture_fault(file)), bool(fault))

  @parameterized.parameters(
    ('<path d="M 0 6 L 8 6 L 8 0 L 0 0 z" style="fill: #ffffff"/>', ''),
    ('<rect width="100%" height="100%" fill="white"/>', ''),
    ('<path d="M 0 6 L 8 6 L 8 0 L 0 0 z" style="fill: none"/>', 'has no'),
    (
      '<path d="M 0 6 L 8 6 L 8 0 L 0 0 z" style="fill:#fff;opacity:0"/>',
      'has no',
    ),
    ('<path d="M 1 6 L 8 6 z" style="fill: #fff"/>', 'has no'),
    ('', 'has no'),
  )
  def test_ground_of_vectors(self, ground, fault):
    with tempfile.TemporaryDirectory() as name:
      file = pathlib.Path(name) / 'x.svg'
      file.write_text(_SVG.format(ground + _DARK_TEXT))
      self.assertStartsWith(picture_fault(file), fault)
      self.assertEqual(bool(picture_fault(file)), bool(fault))


if __name__ == '__main__':
  absltest.main()
