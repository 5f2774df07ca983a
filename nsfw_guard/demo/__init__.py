"""The embedded demo: a tiny trained Stable Diffusion pipeline that draws shapes, and a tiny classifier that knows them.

It is NO NSFW MODEL. Its stand-in for "unsafe" is the triangle; nothing here has seen any other picture than drawn
shapes.
"""

STEPS = 20  # of denoising
NOTICE = "NO NSFW MODEL: the demo's stand-in for 'unsafe' is the triangle."
