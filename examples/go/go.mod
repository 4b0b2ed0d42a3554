module example.com/ltxtrain

go 1.23
