"""A bucket in memory, which stands in for gs:// and s3://."""

import io

from etils.epath import backend
import fsspec
from fsspec.registry import _registry


class Bucket(fsspec.AbstractFileSystem):
  """Objects by their path, such as "bucket/folder/file".

  As in a real bucket, there are no empty folders, and an object appears when its writer
  closes it. It cannot be appended to.
  """

  objects: dict[str, bytes]  # of a subclass

  @classmethod
  def _strip_protocol(cls, path):
    return str(path).split("://")[-1].strip("/")

  def info(self, path, **_):
    path = self._strip_protocol(path)
    if path in self.objects:
      return {"name": path, "size": len(self.objects[path]), "type": "file"}
    if any(name.startswith(f"{path}/") for name in self.objects):
      return {"name": path, "size": 0, "type": "directory"}
    raise FileNotFoundError(path)

  def ls(self, path, detail=True, **_):
    path = self._strip_protocol(path)
    below = [x[len(path) + 1 :] for x in self.objects if x.startswith(f"{path}/")]
    names = sorted({f"{path}/{x.split('/')[0]}" for x in below})
    if not names:
      names = [self.info(path)["name"]]
    return [self.info(x) for x in names] if detail else names

  def mkdir(self, path, create_parents=True, **_):
    raise AssertionError(f"the packages for buckets would create the bucket of {path}")

  makedirs = mkdir

  def rm_file(self, path):
    self.objects.pop(self._strip_protocol(path), None)  # nothing to do for a folder

  def rmdir(self, path):
    raise FileNotFoundError(path)

  def cp_file(self, path1, path2, **_):
    if self.info(path1)["type"] == "file":
      source, target = (self._strip_protocol(x) for x in (path1, path2))
      self.objects[target] = self.objects[source]

  def _open(self, path, mode="rb", **_):
    path = self._strip_protocol(path)
    if mode == "rb":
      self.info(path)
      return io.BytesIO(self.objects[path])
    if mode != "wb":
      raise NotImplementedError(f"an object cannot be opened with the mode {mode}")
    return _Writer(self.objects, path)


class _Writer(io.BytesIO):
  """Writes from the start to the end, and stores the object when it is closed."""

  def __init__(self, objects, path):
    super().__init__()
    self._objects, self._path = objects, path

  def seekable(self):
    return False

  def seek(self, *_):
    raise OSError("an object is written from the start to the end")

  def close(self):
    if not self.closed:
      self._objects[self._path] = self.getvalue()
    super().close()


def install(monkeypatch):
  """Makes gs:// and s3:// the same new bucket, until the end of a test.

  Args:
    monkeypatch: the fixture of pytest.

  Returns:
    The objects, by their path.
  """
  new = type("NewBucket", (Bucket,), {"objects": {}})
  for name in ("gcs", "gs", "s3"):
    monkeypatch.setitem(_registry, name, new)
  backend.fsspec_backend._get_filesystem.cache_clear()
  return new.objects
