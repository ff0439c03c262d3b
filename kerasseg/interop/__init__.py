"""Other people's weights, and the weights of other networks, into ours."""

from kerasseg.interop.caffe import load_caffe as load_caffe
from kerasseg.interop.caffemodel import read_caffemodel as read_caffemodel
from kerasseg.interop.classes import fitting_classes as fitting_classes
from kerasseg.interop.transplant import transplant as transplant
