"""A patch that makes a file a program and another a repository.

Caught: modes are no part of a change.
"""

PATCH = """\
diff --git a/model.py b/model.py
old mode 100644
new mode 104755
diff --git a/config/new.py b/config/new.py
new file mode 160000
--- /dev/null
+++ b/config/new.py
@@ -0,0 +1 @@
+Subproject commit 6353100000000000000000000000000000000000
"""
REFUSED = "changes nothing"
