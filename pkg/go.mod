module github.com/livinguniverse/stoker/pkg

go 1.26.0
