"""The model repository that the NPU community publishes, written from an artifact and verify's results.

`evidence` reads and judges the results, `gather` makes `facts` of them, the one model that templates are given,
`render` fills the templates, `chinese` has what gates ask, `plots` draws, `kept` finds what people wrote, and `folder`
puts everything in its place.
"""
