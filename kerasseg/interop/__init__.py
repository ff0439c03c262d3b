"""Other people's weights, and the weights of other networks, into ours."""

from kerasseg.interop.caffe import load_caffe as load_caffe
from kerasseg.interop.transplant import transplant as transplant
