"""Random and fixed changes of an image and its label map, always of both at once."""

from kerasseg.data.transforms.changes import ColorJitter as ColorJitter
from kerasseg.data.transforms.changes import Compose as Compose
from kerasseg.data.transforms.changes import Flip as Flip
from kerasseg.data.transforms.changes import Jitter as Jitter
from kerasseg.data.transforms.changes import LossSampling as LossSampling
from kerasseg.data.transforms.changes import PadTo as PadTo
from kerasseg.data.transforms.changes import RandomCrop as RandomCrop
from kerasseg.data.transforms.changes import RandomScale as RandomScale
from kerasseg.data.transforms.changes import ReflectionMargin as ReflectionMargin
from kerasseg.data.transforms.changes import Resize as Resize
from kerasseg.data.transforms.changes import compose as compose
from kerasseg.data.transforms.changes import pad_to as pad_to
from kerasseg.data.transforms.changes import static_size as static_size
