"""Paths with dots, tabs, line ends and bytes that are no text. Caught: none may change."""

PATCH = """\
--- /dev/null
+++ b/config/../nanoloop/new.py
@@ -0,0 +1 @@
+x = 1
--- /dev/null
+++ "b/nanoloop/x\\tmodel.py"
@@ -0,0 +1 @@
+x = 1
--- /dev/null
+++ "b/config/x.py\\n"
@@ -0,0 +1 @@
+x = 1
--- /dev/null
+++ "b/config/\\377.py"
@@ -0,0 +1 @@
+x = 1
"""
REFUSED = r"touches config/\.\./nanoloop/new.py, nanoloop/x model.py, config/x.py , config/.\.py;"
