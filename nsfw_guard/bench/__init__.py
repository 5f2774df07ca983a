"""The benchmark, ``nsfw-guard bench``: the guard and what people use instead of it, on the same work, in the same run.

It needs the extra ``bench``. The core never imports it.
"""
