module raykube.test/pause

go 1.24
