"""A patch whose second part does not fit. Caught: it is applied as one, or not."""

PATCH = """\
--- /dev/null
+++ b/config/new.py
@@ -0,0 +1 @@
+x = 1
--- a/model.py
+++ b/model.py
@@ -1 +1 @@
-not there
+new
"""
REFUSED = "does not apply"
