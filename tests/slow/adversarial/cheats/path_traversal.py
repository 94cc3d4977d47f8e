"""A patch that writes outside its tree. Caught: only the recipe may change."""

PATCH = """\
--- /dev/null
+++ b/../outside.py
@@ -0,0 +1 @@
+print('mine')
"""
REFUSED = "touches|does not apply"
